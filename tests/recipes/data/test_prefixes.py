import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from weightops.recipes.data.prefixes import corrects_itself, cuts, prefixes
from weightops.rows.labelled import LabelledText

texts = st.text(st.sampled_from("ab é\u0301\u200d\U0001f468\U0001f3fd\ud83d\ude00\r\n日"), max_size=60)


@st.composite
def labelled(draw):
    text = draw(texts)
    unsafe = draw(st.booleans())
    onset = draw(st.none() | st.integers(0, len(text) - 1)) if text else None
    return LabelledText(text, unsafe, onset)


@given(texts, st.integers(1, 9))
def test_cuts_grow_to_the_whole_text_and_never_part_what_is_one_character(text, step):
    ends = cuts(text, step)
    assert ends == sorted(set(ends))
    assert ends[-1] == len(text)
    for end in ends[:-1]:
        assert not unicodedata.combining(text[end])
        assert not ("\ud800" <= text[end - 1] <= "\udbff" and "\udc00" <= text[end] <= "\udfff")
        assert text[end - 1 : end + 1] != "\r\n"
        assert text[end] != "\u200d" != text[end - 1]


@given(st.text("abc", min_size=1, max_size=60), st.integers(1, 9))
def test_plain_text_is_cut_every_step_characters(text, step):
    assert cuts(text, step) == [*range(step, len(text), step), len(text)]


@given(labelled(), st.integers(0, 9), st.none() | st.integers(0, 60))
def test_labels_go_to_unsafe_once_and_never_back_and_end_in_the_texts_own(row, step, told):
    made = prefixes([row], step, lambda text: told)
    if corrects_itself(row):
        assert made == []
        return
    labels = [unsafe for _, unsafe in made]
    assert labels == sorted(labels)
    assert made[-1] == (row.text, row.unsafe)
    assert all(row.text.startswith(text) for text, _ in made)


@given(labelled(), st.integers(1, 9))
def test_a_prefix_is_unsafe_exactly_when_it_holds_the_first_unsafe_character(row, step):
    if row.unsafe and row.first_unsafe_char is not None:
        assert all(unsafe == (len(text) > row.first_unsafe_char) for text, unsafe in prefixes([row], step))


def test_an_unknown_onset_leaves_the_whole_text_only_unless_somebody_tells():
    row = LabelledText("fine, then bad", True)
    assert prefixes([row], 5) == [("fine, then bad", True)]
    assert prefixes([row], 5, lambda text: 9) == [("fine,", False), ("fine, then", True), ("fine, then bad", True)]


def test_rows_that_correct_themselves_are_left_out():
    back = [LabelledText("ab", False, 0), LabelledText("ab", True, labels=(False, True, False))]
    assert prefixes(back, 1) == []
    once = LabelledText("ab", True, 1, (False, True))
    assert prefixes([once], 1) == [("a", False), ("ab", True)]
