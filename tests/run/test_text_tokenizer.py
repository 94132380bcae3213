"""Where the tokenizer of a text encoder is found, and tokenizers of other models, which are refused."""

import json

import pytest

from tests.data.test_pretrained_tokenizer import train_sentencepiece, write_qwen
from tests.models.test_hub import hub  # noqa: F401
from tests.models.text_encoders import write_t5, write_words
from videogen_jax.models.text_encoder import make_text_encoder
from videogen_jax.run import text_tokenizer


def write_config(folder, **changes):
    """The config.json of a T5, or of what the changes say."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"model_type": "t5", "vocab_size": 40, "d_model": 8, "d_kv": 4, "d_ff": 8}
    given |= {"num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
    (folder / "config.json").write_text(json.dumps(given | changes))
    return str(folder)


def open_of(kind, folder):
    return text_tokenizer.open_tokenizer(kind, make_text_encoder(kind, str(folder)))


def test_beside_the_weights_or_in_the_folder_beside_theirs(tmp_path):
    weights = write_config(tmp_path / "text_encoder_2")
    with pytest.raises(FileNotFoundError) as caught:
        text_tokenizer.find_tokenizer(weights)
    places = f"into {weights} or {tmp_path / 'tokenizer_2'}."
    assert "put the tokenizer.json or spiece.model of the same model" in str(caught.value)
    assert str(caught.value).endswith(places)
    beside = write_words(tmp_path / "tokenizer_2")
    write_words(tmp_path / "tokenizer")  # of another text encoder
    assert text_tokenizer.find_tokenizer(weights) == beside
    own = train_sentencepiece(tmp_path / "text_encoder_2", False)
    assert text_tokenizer.find_tokenizer(weights) == own
    assert text_tokenizer.find_tokenizer(f"{weights}/config.json") == own
    fast = write_words(tmp_path / "text_encoder_2")
    assert text_tokenizer.find_tokenizer(weights) == fast  # tokenizer.json goes first


def test_relative_paths_are_searched_too(tmp_path, monkeypatch):
    write_config(tmp_path / "text_encoder")
    beside = write_words(tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    assert text_tokenizer.find_tokenizer("text_encoder") == beside
    monkeypatch.chdir(tmp_path / "text_encoder")
    assert text_tokenizer.find_tokenizer(".") == beside


def test_it_is_downloaded_from_the_hub(hub, tmp_path, monkeypatch):  # noqa: F811
    beside = write_words(tmp_path / "cached")

    def download(repository, file):
        hub.requests.append(file)
        if not file.startswith("tokenizer/"):
            raise FileNotFoundError("no such file")
        return str(beside)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert text_tokenizer.find_tokenizer("owner/known/text_encoder") == beside
    names = [f"text_encoder/{name}" for name in ("tokenizer.json", "spiece.model")]
    assert hub.requests == [*names, "tokenizer/tokenizer.json"]


def test_captions_are_cut_and_counted(tmp_path):
    tokenize = open_of("t5", write_t5(tmp_path))
    rows, counts = tokenize(["a red ball", "", "word " * 600])
    assert rows[0] == [3, 4, 5, 1] and rows[1] == [1] and counts == [4, 1, 601]
    assert len(rows[2]) == 512 and rows[2][-1] == 1


def test_an_empty_caption_of_qwen_is_its_end_of_text(tmp_path):
    write_qwen(tmp_path)
    fields = {"model_type": "qwen3", "vocab_size": 640, "hidden_size": 8, "intermediate_size": 8}
    fields |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    write_config(tmp_path, **fields, head_dim=4, eos_token_id=602)
    rows, counts = open_of("qwen3", tmp_path)(["", "a"])
    assert rows[0] == [602] and counts == [1, 1] and rows[1] != [602]
    write_config(tmp_path, **fields, head_dim=4, eos_token_id=5)
    with pytest.raises(
        ValueError, match="it has no end of text of the id 5, which the config.json"
    ):
        open_of("qwen3", tmp_path)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [(11, "it has 13 ids, but the text encoder in '.*' 11"), (1038, "it has 13 ids, but .* 1038")],
)
def test_tokenizers_of_other_sizes_are_refused(tmp_path, vocabulary, message):
    write_words(tmp_path)
    write_config(tmp_path, vocab_size=1037)  # padded to a round number
    open_of("t5", tmp_path)
    write_config(tmp_path, vocab_size=vocabulary)
    with pytest.raises(ValueError, match=rf"tokenizer.json is the tokenizer of another.*{message}"):
        open_of("t5", tmp_path)


def test_tokenizers_with_other_ends_are_refused(tmp_path):
    write_words(tmp_path, end=False)
    write_config(tmp_path)
    with pytest.raises(ValueError, match=r"the ids \[\] for an empty caption, but T5's is the end"):
        open_of("t5", tmp_path)
    write_words(tmp_path)
    write_config(tmp_path, eos_token_id=7)
    with pytest.raises(ValueError, match="no end of text of the id 7"):
        open_of("t5", tmp_path)
    write_qwen(tmp_path)
    write_config(tmp_path, vocab_size=640)
    with pytest.raises(ValueError, match="no end of text of the id 1"):
        open_of("t5", tmp_path)
