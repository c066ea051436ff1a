"""CALRec's two stages in Python, from a store to a table. No gin.

It is the run of gin/runs/quickstart.gin:

    calrec synthetic --data_dir=runs/example/store
    calrec vocab --data_dir=runs/example/store --out=runs/example/store/vocabulary.model \
        --domains=synthetic_garden,synthetic_kitchen,synthetic_office,synthetic_sports
    python examples/two_stage.py --store=runs/example/store --model_dir=runs/example/model

The embedded store is four made-up domains; for data of your own, see docs/your_own_data.md.
"""

from __future__ import annotations

import argparse

import calrec_jax
from calrec_jax import (
    DataConfig,
    DecoderConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    Run,
    SamplingConfig,
    Stage,
    vocabularies,
)

DOMAINS = "calrec_jax.tasks.synthetic"  # a module that calls register_domain, register_mixture
TARGET = "synthetic_sports"


def make_run(store: str, model_dir: str, steps: tuple[int, int] = (180, 60)) -> Run:
    """Stage I on all domains, stage II on the target domain, and the evaluation of stage II."""
    shared = {
        "batch_size": 40,
        "task_feature_lengths": {"inputs": 176, "targets": 32},  # tokens of history and target
        "max_segments": 3,  # examples that may share a row
        "losses": LossConfig(alpha=0.125, beta=0.025),
        "validate_period": 40,
        "validation_batches": 8,
    }
    stage1 = Stage(
        name="stage1",
        mixture="synthetic_all",
        train_steps=steps[0],
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=40),
        **shared,
    )
    stage2 = Stage(
        name="stage2",
        mixture=TARGET,
        train_steps=steps[1],
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20),
        init_from="stage1:best",
        **shared,
    )
    return Run(
        model_dir=model_dir,
        model=DecoderConfig(
            d_model=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=384
        ),
        data=DataConfig(store, vocabularies.sentencepiece(f"{store}/vocabulary.model")),
        modules=DOMAINS,
        stages=[stage1, stage2],
        evaluation=EvaluationConfig(
            TARGET, checkpoint="stage2:best", sampling=SamplingConfig(max_new_tokens=32)
        ),
    )


def table(result: dict) -> str:
    """NDCG@10 and recall@10 of the model and the baselines, with 95 % intervals over users."""
    lines = [f"{'':<20}{'ndcg@10':>24}{'recall@10':>24}"]
    for name, metrics in {result["model"]: result["metrics"], **result["baselines"]}.items():
        cells = [metrics[metric] for metric in ("ndcg@10", "recall@10")]
        shown = [f"{c['value']:.4f} ({c['low']:.4f}, {c['high']:.4f})" for c in cells]
        lines.append(f"{name:<20}" + "".join(f"{cell:>24}" for cell in shown))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--steps", type=int, nargs=2, default=(180, 60), metavar=("I", "II"))
    args = parser.parse_args()

    run = make_run(args.store, args.model_dir, tuple(args.steps))
    calrec_jax.train(run)  # goes on where it stopped, if it is called again
    print(table(calrec_jax.evaluate(run)))


if __name__ == "__main__":
    main()
