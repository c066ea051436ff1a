"""Checkpoints: our own, and those that come from and go to other programs.

manager.py            Orbax checkpoints of a stage: saved, restored, "best" and "latest"
damage.py             what an incomplete one makes Orbax raise, as one line
streamed.py           checkpoints larger than memory, a piece at a time
hf_io.py, peft.py     weights from and to transformers; adapters to PEFT
hf_families.py        transformers' config.json as ours, and back (rotary parameters: hf_rope.py)
hf_maps.py            which tensor of transformers is which parameter
safetensors_io.py     the file format of its weights
"""
