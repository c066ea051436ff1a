import copy
import pickle

import pytest
import seqio
import tensorflow as tf
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from calrec_jax.data import vocabularies
from calrec_jax.data.preparation import sentencepiece_training
from calrec_jax.data.seqio_tasks.seqio_vocabularies import RunVocabulary, as_seqio

TEXTS = [f"Title: garden hose {n} Brand: Velmo Price: ${n}.99" for n in range(200)]
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("sentencepiece") / "tiny.model"
    sentencepiece_training.train(TEXTS, path, 400)
    return vocabularies.sentencepiece(str(path))


def tokenizer_file(path, special):
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return tokenizer_file(path, ["<unk>", "<bos>", "<eos>", "<pad>"])


@pytest.fixture(scope="session")
def wrapped(file):
    return as_seqio(vocabularies.huggingface(file))


@given(text=TEXT)
@example(text="")
@example(text="garden <eos> hose")
@example(text="caf\u00e9 \x00 \U0001f6b4")
def test_ids_are_those_of_the_tokenizers_library(wrapped, file, text):
    library = tokenizers.Tokenizer.from_file(file)
    library.encode_special_tokens = True
    expected = library.encode(text, add_special_tokens=False).ids
    assert not {0, 1, 2, 3} & set(expected)
    assert wrapped.encode(text) == expected
    ids = wrapped.encode_tf(tf.constant(text))
    assert ids.dtype == tf.int32 and ids.numpy().tolist() == expected
    assert wrapped.decode(expected) == vocabularies.huggingface(file).decode(expected)
    decoded = wrapped.decode_tf(tf.constant(expected, tf.int32)).numpy().decode()
    assert decoded == wrapped.decode(expected)


def test_a_text_comes_back(wrapped):
    text = "caf\u00e9 \x00 \U0001f6b4 <eos> "
    assert wrapped.decode(wrapped.encode(text)) == text
    assert wrapped.decode_tf(wrapped.encode_tf(text)).numpy().decode() == text


def test_special_tokens_of_a_template_keep_their_meaning(wrapped, sentencepiece):
    current = [wrapped]
    stand_in = RunVocabulary(lambda: current[0])
    assert wrapped.encode_template("<bos>") == stand_in.encode_template("<bos>") == [1]
    assert vocabularies.encode_template(wrapped, "<bos>") == [1]
    for current[0] in (sentencepiece, seqio.ByteVocabulary()):
        assert stand_in.encode_template("<bos>") == current[0].encode("<bos>")


def test_attributes(wrapped, file):
    assert isinstance(wrapped, seqio.Vocabulary)
    library = tokenizers.Tokenizer.from_file(file)
    special = (wrapped.bos_id, wrapped.eos_id, wrapped.pad_id)
    assert special == (1, 2, 3)
    assert wrapped.unk_id is None  # byte-level: there is nothing unknown
    assert wrapped.vocab_size == library.get_vocab_size() == 350
    assert vocabularies.bos_id(wrapped) == 1


def test_ids_are_decoded_up_to_eos(wrapped):
    ids = wrapped.encode("garden")
    row = [1, *ids, 3, 2, *ids]
    assert wrapped.decode(row) == wrapped.decode(tf.constant(row)) == "garden"
    assert wrapped.decode_tf(tf.constant(row)).numpy() == b"garden"


def test_batches_are_decoded(wrapped):
    ids = wrapped.encode("garden hose")
    rows = [[*ids, 2, 5], [2] + [5] * (len(ids) + 1)]
    assert wrapped.decode_tf(tf.constant(rows)).numpy().tolist() == [b"garden hose", b""]
    cube = wrapped.decode_tf(tf.constant([rows, rows, rows]))
    assert cube.shape == (3, 2) and cube.numpy()[2].tolist() == [b"garden hose", b""]
    assert wrapped.decode_tf(tf.zeros([2, 0], tf.int32)).numpy().tolist() == [b"", b""]


def test_in_a_dataset(wrapped):
    texts = ["garden", "hose 12", "", "ends in NUL\x00"]
    dataset = tf.data.Dataset.from_tensor_slices(texts).map(wrapped.encode_tf)
    assert dataset.element_spec == tf.TensorSpec([None], tf.int32)
    assert [ids.tolist() for ids in dataset.as_numpy_iterator()] == [
        wrapped.encode(text) for text in texts
    ]
    back = dataset.map(wrapped.decode_tf)
    assert back.element_spec == tf.TensorSpec([], tf.string)
    assert [text.decode() for text in back.as_numpy_iterator()] == texts


def test_in_a_task(wrapped):
    feature = seqio.Feature(wrapped, add_eos=True)
    dataset = tf.data.Dataset.from_tensors({"targets": "garden"})
    tokenized = seqio.preprocessors.tokenize(dataset, {"targets": feature})
    ended = seqio.preprocessors.append_eos(tokenized, {"targets": feature})
    (found,) = ended.as_numpy_iterator()
    assert found["targets"].tolist() == [*wrapped.encode("garden"), 2]


def test_only_scalars_are_encoded(wrapped):
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible"):
        wrapped.encode_tf(tf.constant(["a", "b"]))


def test_equality_is_that_of_the_ids(wrapped, file, tmp_path):
    assert wrapped == as_seqio(vocabularies.huggingface(file)) == vocabularies.huggingface(file)
    assert vocabularies.huggingface(file) == wrapped
    other = tokenizer_file(tmp_path / "tokenizer.json", ["<unk>", "<bos>", "<pad>", "<eos>"])
    assert wrapped != as_seqio(vocabularies.huggingface(other))
    assert wrapped != seqio.ByteVocabulary()
    assert wrapped != "a string"
    expected = vocabularies.fingerprint(vocabularies.huggingface(file))
    assert vocabularies.fingerprint(wrapped) == expected


def test_copies(wrapped):
    for again in (pickle.loads(pickle.dumps(wrapped)), copy.deepcopy(wrapped)):
        assert again == wrapped
        assert again.encode("garden") == wrapped.encode("garden")
        assert again.encode_tf("garden").numpy().tolist() == wrapped.encode("garden")


def test_bytes_and_sentencepiece_become_seqios_own_classes(sentencepiece):
    for ours, kind in (
        (vocabularies.byte(), seqio.ByteVocabulary),
        (sentencepiece, seqio.SentencePieceVocabulary),
    ):
        seqios = as_seqio(ours)
        assert type(seqios) is kind
        assert as_seqio(seqios) is seqios
        assert vocabularies.fingerprint(seqios) == vocabularies.fingerprint(ours)
        expected = ours.encode("garden hose")
        assert seqios.encode("garden hose") == expected
        assert seqios.encode_tf("garden hose").numpy().tolist() == expected


def test_a_subclass_keeps_its_ids():
    class Shifted(vocabularies.ByteVocabulary):
        def encode(self, text):
            return [i + 1 for i in super().encode(text)]

    vocabulary = as_seqio(Shifted())
    assert vocabulary.encode("a") == vocabulary.encode_tf("a").numpy().tolist() == [101]


def test_the_vocabulary_of_a_task_follows_the_run(sentencepiece, wrapped):
    current = [vocabularies.byte()]
    stand_in = RunVocabulary(lambda: current[0])
    assert stand_in.encode("ab") == [100, 101]
    assert stand_in == vocabularies.byte() and stand_in != sentencepiece
    assert vocabularies.byte() == stand_in
    assert stand_in == seqio.ByteVocabulary()
    assert vocabularies.bos_id(stand_in) == 0
    current[0] = sentencepiece
    assert stand_in == sentencepiece and stand_in != vocabularies.byte()
    for current[0] in (sentencepiece, as_seqio(sentencepiece), wrapped):
        ids = current[0].encode("garden")
        assert stand_in.encode("garden") == stand_in.encode_tf("garden").numpy().tolist() == ids
        assert stand_in.decode([*ids, stand_in.eos_id, *ids]) == "garden"
        assert stand_in.decode_tf(tf.constant(ids)).numpy() == b"garden"
        for name in ("bos_id", "eos_id", "pad_id", "unk_id", "vocab_size"):
            assert getattr(stand_in, name) == getattr(current[0], name)
        assert vocabularies.fingerprint(stand_in) == vocabularies.fingerprint(current[0])
