from colorsys import rgb_to_hls
from itertools import pairwise

from optuna_robustloss.report.styles import _DISPLAY, display_name, in_order, styles


def test_unknown_names_are_shown_as_they_are():
    assert display_name("out/my_loss.json") == "out/my_loss.json"
    assert display_name("eps-softmax") == "ε-softmax + MAE"


def test_known_methods_come_first_in_their_order():
    assert in_order(["zoo", "jocor", "ar", "ce", "ce"]) == ("ce", "jocor", "ar", "zoo")


def test_no_two_methods_look_alike():
    every = styles([*_DISPLAY, "ar_sym80", "dr_sym80", "out/my_loss.json"])
    assert len(set(every.values())) == len(every)


def test_a_known_method_looks_the_same_beside_any_others():
    assert styles(["gce"])["gce"] == styles([*_DISPLAY, "ar_sym80"])["gce"]


def test_lines_are_dark_enough_for_white_paper():
    for style in styles(_DISPLAY).values():
        red, green, blue = (int(style.colour[i:j], 16) / 255 for i, j in pairwise((1, 3, 5, 7)))
        assert rgb_to_hls(red, green, blue)[1] < 0.7
