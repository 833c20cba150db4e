import random

import pytest

from luthier.generation.text import TextStream, decode_text, held_back

PASSAGE = "Grüße, 世界! 👩‍👩‍👧 naïve — a\u200bb\n\n  two  spaces and an e\u0301."


def pieces_of(tokenizer, tokens, stops=(), shown_ids=frozenset()):
    stream = TextStream(tokenizer, stops, shown_ids)
    pieces = []
    for token in tokens:
        pieces.append(stream.add(token))
        if stream.is_stopped:
            break
    return stream, [*pieces, stream.end()]


def test_pieces_add_up_to_the_text_and_never_hold_half_a_character(byte_level):
    tokens = byte_level(PASSAGE)["input_ids"]
    assert len(tokens) > len(PASSAGE)
    stream, pieces = pieces_of(byte_level, tokens)
    assert "".join(pieces) == PASSAGE == stream.text
    assert "\ufffd" not in "".join(pieces)


def test_pieces_add_up_where_spaces_belong_to_the_next_word(word_level):
    id_of = word_level.convert_tokens_to_ids
    tokens = id_of(["▁one", "▁two", "three", "<0xE2>", "<0x82>", "<0xAC>", "▁", "▁caf", "é", "<stop>", "▁one"])
    stream, pieces = pieces_of(word_level, tokens)
    assert "".join(pieces) == stream.text == decode_text(word_level, tokens) == "one twothree€  café one"
    assert pieces[3:6] == ["", "", "€"]


def test_special_tokens_that_are_to_be_shown_are_and_no_others(byte_level):
    byte_level.add_special_tokens({"additional_special_tokens": ["<extra_id_0>", "<mark>"]})
    tokens = byte_level("<mark>ab<extra_id_0>c<stop>")["input_ids"]
    assert decode_text(byte_level, tokens) == "abc"
    shown_ids = frozenset([byte_level.convert_tokens_to_ids("<extra_id_0>")])
    stream, pieces = pieces_of(byte_level, tokens, shown_ids=shown_ids)
    assert "".join(pieces) == stream.text == decode_text(byte_level, tokens, shown_ids) == "ab<extra_id_0>c"


def test_broken_bytes_are_shown_in_the_end_as_decoding_shows_them(byte_level):
    tokens = byte_level("ab€")["input_ids"][:-1]
    stream, pieces = pieces_of(byte_level, tokens)
    assert pieces[:3] == ["a", "b", ""]
    assert stream.text == decode_text(byte_level, tokens) == "ab\ufffd"


def test_random_bytes_stream_to_what_they_decode_to_at_once(byte_level):
    draw = random.Random(0)
    for _ in range(50):
        tokens = [draw.randrange(257) for _ in range(draw.randrange(1, 40))]
        stream, pieces = pieces_of(byte_level, tokens)
        assert "".join(pieces) == stream.text == decode_text(byte_level, tokens)


@pytest.mark.parametrize("stops", [("END",), ("\n\n", "END"), ("世界",), ("x",), ("N", "EN"), ("aab",), ("👧",)])
def test_text_is_cut_before_the_first_stop_text_and_no_piece_shows_its_beginning(byte_level, stops):
    for text in ("ab E EN END more", "世 世界 x", "aaaab", "one\n two\n\nEND", "👩‍👩‍👧 family", "nothing here E"):
        stream, pieces = pieces_of(byte_level, byte_level(text)["input_ids"], stops)
        at = min((text.index(stop) for stop in stops if stop in text), default=None)
        # the stop text that is complete first wins: here the one that begins first, except for "N" within "EN"
        expected = text if at is None else text[:at]
        if stops == ("N", "EN") and at is not None:
            expected = text[: text.index("N") - 1]
        assert "".join(pieces) == stream.text == expected
        assert stream.is_stopped == (at is not None)


def test_what_may_begin_a_stop_text_is_held_back():
    assert held_back("abc", ["cde"]) == 1
    assert held_back("abcd", ["cde", "d"]) == 2
    assert held_back("aaa", ["aab"]) == 2
    assert held_back("abc", ["x"]) == 0
    assert held_back("abc", []) == 0
    assert held_back("", ["abc"]) == 0
