import numpy as np
import pytest
import seqio
from batch_segments import segments

from calrec_jax.batch import BatchSpec
from calrec_jax.data.seqio_tasks.feature_converters import CalrecFeatureConverter
from calrec_jax.data.store.quiet_tensorflow import tf
from calrec_jax.errors import CalrecError

LENGTHS = {"inputs": 6, "targets": 4}


def dataset(n, seed=0):
    """`n` examples of all lengths, as a SeqIO task yields them."""
    rng = np.random.default_rng(seed)

    def examples():
        for i in range(n):
            history, target = rng.integers(1, 7), rng.integers(1, 4)
            yield {
                "inputs": rng.integers(4, 99, history),
                "targets": np.append(rng.integers(4, 99, target), 1),
                "target_item_ids": 100 + i,
                "domain_ids": 7,
            }

    row, number = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32)
    return tf.data.Dataset.from_generator(
        examples,
        output_signature={
            "inputs": row,
            "targets": row,
            "target_item_ids": number,
            "domain_ids": number,
        },
    )


def convert(ds, batch_size=None, **arguments):
    converter = CalrecFeatureConverter(bos_id=3, **arguments)
    rows = converter(ds, LENGTHS)
    return list(rows.batch(batch_size or 10_000).as_numpy_iterator())


def test_packed_and_unpacked_hold_the_same_segments():
    (unpacked,) = convert(dataset(200), pack=False)
    assert len(unpacked["domain_ids"]) == 200
    for arguments in (
        {"max_segments": 2, "row_length": 20},
        {"max_segments": 5, "row_length": 33},
        {"max_segments": 5, "row_length": 33, "max_loss_tokens": 7, "window": 16},
    ):
        (packed,) = convert(dataset(200), pack=True, **arguments)
        assert len(packed["domain_ids"]) < 130
        assert segments(packed) == segments(unpacked)


def test_unpacked_rows_keep_the_order():
    (batch,) = convert(dataset(70), pack=False)
    assert batch["target_item_ids"][:, 0].tolist() == list(range(100, 170))


def test_a_window_depends_on_nothing_before_it():
    both = convert(dataset(64), pack=True, window=32)[0]
    second = convert(dataset(64).skip(32), pack=True, window=32)[0]
    rows = len(second["domain_ids"])
    for name, value in second.items():
        np.testing.assert_array_equal(both[name][-rows:], value)


def test_rows_have_the_specs_shapes():
    for pack in (False, True):
        converter = CalrecFeatureConverter(pack=pack, row_length=20, max_segments=3)
        spec = converter.spec(LENGTHS)
        assert spec == BatchSpec.create(1, LENGTHS, 20, 3 if pack else 1)
        rows = converter(dataset(5), LENGTHS)
        shapes = {name: (s.shape, s.dtype) for name, s in rows.element_spec.items()}
        assert shapes == {
            name: (tf.TensorShape(shape[1:]), tf.as_dtype(dtype))
            for name, (shape, dtype) in spec.shapes().items()
        }


def test_lengths_of_the_model_features():
    converter = CalrecFeatureConverter(row_length=30, max_segments=4)
    lengths = converter.get_model_feature_lengths(LENGTHS)
    assert lengths.keys() == CalrecFeatureConverter.MODEL_FEATURES.keys()
    assert lengths["decoder_input_tokens"] == 30 and lengths["item_tokens"] == 4


def test_it_can_be_made_as_t5x_makes_it():
    for pack in (False, True):
        converter = CalrecFeatureConverter(pack=pack, use_custom_packing_ops=False)
        assert converter.pack is pack
        assert converter.bos_id == 0
        assert converter.PACKING_FEATURE_DTYPES == {}
        assert list(converter(dataset(3), LENGTHS))
    assert set(CalrecFeatureConverter.TASK_FEATURES) == {
        "inputs",
        "targets",
        "target_item_ids",
        "domain_ids",
    }


def test_a_row_shorter_than_an_example_is_refused():
    with pytest.raises(CalrecError, match="row_length 9"):
        CalrecFeatureConverter(row_length=9)(dataset(3), LENGTHS)


def test_seqio_checks_the_examples():
    def without_ids(example):
        return {name: example[name] for name in ("inputs", "targets")}

    with pytest.raises(ValueError, match="target_item_ids"):
        CalrecFeatureConverter()(dataset(3).map(without_ids), LENGTHS)
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(CalrecFeatureConverter(pack=False)(dataset(50), {"inputs": 4, "targets": 4}))


def test_it_is_a_seqio_converter():
    assert isinstance(CalrecFeatureConverter(), seqio.FeatureConverter)
