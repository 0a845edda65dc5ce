"""Laws of the text tokenizer: any text comes back as it was, nothing is unknown, and training is repeatable."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lavit.language.text_tokenizer import SMALLEST, SPECIAL, train_text_tokenizer
from lavit.shapes.questions import sentences


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(sentences(), 400)


def everything(tokenizer) -> str:
    return tokenizer.backend_tokenizer.to_str()


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@pytest.mark.parametrize("skip", [True, False])
def test_any_text_comes_back_and_nothing_is_unknown(tokenizer, skip, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=skip) == text
    assert all(len(SPECIAL) <= i < len(tokenizer) for i in ids)


@pytest.mark.parametrize(
    "text", ["</s>", "a<s>b <pad><unk>", " two  spaces ", "\n\t", "isn't . it ?", "\x00", "été 圓"]
)
def test_special_tokens_and_odd_spaces_in_a_text_are_letters(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text and min(ids) >= len(SPECIAL)


def test_special_tokens_have_llamas_places(tokenizer):
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id) == (0, 1)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 3)
    assert tokenizer.decode([1, 2, 3, 0], skip_special_tokens=True) == ""
    batch = tokenizer(["a red circle top left", "2"], padding=True)
    assert batch.input_ids[1][0] == tokenizer.pad_token_id and batch.attention_mask[1][0] == 0


def test_words_of_the_sentences_become_single_tokens(tokenizer):
    assert len(tokenizer) <= 400
    assert len(tokenizer("a red circle top left and a blue square bottom right").input_ids) == 11
    assert len(tokenizer("Question: what colour is the object top left? Answer: red").input_ids) == 13


def test_same_sentences_in_any_order_give_the_same_tokenizer(tokenizer):
    assert everything(train_text_tokenizer(sentences()[::-1], 400)) == everything(tokenizer)


def test_it_comes_back_from_a_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert everything(again) == everything(tokenizer)
    text = "a red circle</s> and <pad>"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids) == text
    assert again.padding_side == "left" and again.special_tokens_map == tokenizer.special_tokens_map


def test_smallest_tokenizer_knows_the_bytes_alone():
    small = train_text_tokenizer(["aa aa aa"], SMALLEST)
    assert len(small) == SMALLEST and len(small("aa é").input_ids) == 5


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: train_text_tokenizer(["a"], 259), "vocab_size.*260.*259"),
        (lambda: train_text_tokenizer([], 300), "sentences.*none"),
        (lambda: train_text_tokenizer([""], 300), "sentences.*none"),
        (lambda: train_text_tokenizer("a red circle", 300), "sentences.*one text"),
        (lambda: train_text_tokenizer(["\ud800"], 300), "sentences.*UTF-8"),
    ],
)
def test_errors_name_the_argument(call, named):
    with pytest.raises(ValueError, match=named):
        call()
