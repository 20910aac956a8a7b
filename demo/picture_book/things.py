"""How each thing of the book is drawn, big: its foot at height 0, its middle at 0 across."""

from __future__ import annotations

import math
from collections.abc import Callable

from .pen import CREAM, DARK, GLOW, SHADE, WOOD, Look, Pen, box, mixed, oval, path, smooth

FEET = {
    **dict.fromkeys(("house", "tree", "boat", "car"), (86.0, 86.0)),
    **dict.fromkeys(("cat", "flower"), (90.0, 90.0)),
    **dict.fromkeys(("balloon", "kite"), (82.0, 90.0)),
    **dict.fromkeys(("cloud", "sun"), (74.0, 90.0)),
}
"""Where the foot of small and big ones is in the slot, in pixels from its top."""
_LEAF, _SAND, _SNOW, _WATER = (96, 172, 84), (240, 210, 146), (246, 250, 255), (206, 236, 246)


def _stand(pen: Pen, look: Look, half: float) -> None:
    """What a thing ``half`` pixels wide to each side stands on."""
    if look.ground == "sea":
        pen.shape(
            smooth([(-half - 5, -4), (-half * 0.6, 3), (half * 0.5, 3.5), (half + 5, -4), (0, -7)]),
            _SAND,
        )
        pen.line(
            [(-half - 2, -7.5), (-half / 3, -9), (half / 3, -7.5), (half + 2, -9)], _WATER, 1.4
        )
    else:
        pen.shadow(oval(2, -0.5, half + 4, 4), 95)


def _foreground(pen: Pen, look: Look, half: float) -> None:
    """What grows or lies before the foot of a thing."""
    if look.ground == "meadow":
        for x in (-half + 1, -half + 5, half - 4, half):
            pen.line([(x - 1.5, 4), (x, -1.5), (x + 2, 4.5)], (78, 152, 68), 1.4)
    if look.ground == "snow":
        pen.shape(
            smooth([(-half - 3, -3), (-half + 5, 3), (-half * 0.2, -1), (0, -4)]),
            _SNOW,
            edge=False,
            shade=1,
        )
        pen.shape(
            smooth([(half + 3, -3), (half - 6, 2.5), (half * 0.3, -1.5), (0, -4)]),
            _SNOW,
            edge=False,
            shade=1,
        )


def house(pen: Pen, look: Look) -> None:
    _stand(pen, look, 24)
    pen.shape(box(10, 44, 17, 70), (176, 110, 92), shade=3)
    pen.shape(box(-22, 0, 22, 42), CREAM)
    roof = path("-29,38 -7,70 7,70 29,38")
    pen.shape(roof, look.main, shade=5)
    for row, half in ((46, 20), (54, 15), (62, 9)):
        pen.line([(-half, row), (half, row)], mixed(look.main, SHADE, 0.22), 1.2)
    if look.ground == "snow":
        pen.shape(smooth(path("-24,47 -8,73 8,73 24,47 12,58 2,54 -8,60")), _SNOW, shade=2)
    pen.shape(box(-5, 0, 7, 22), WOOD, shade=2)
    pen.shape(oval(4, 11, 1, 1), GLOW, edge=False, shade=0)
    for x in (-18, 11):
        pen.shape(box(x, 20, x + 9, 31), (150, 204, 236), shade=0)
        if look.time != "day":
            pen.glow(box(x + 1, 21, x + 8, 30), GLOW)
        pen.line([(x + 4.5, 20), (x + 4.5, 31)], DARK, 1)
        pen.line([(x, 25.5), (x + 9, 25.5)], DARK, 1)
    _foreground(pen, look, 25)


def tree(pen: Pen, look: Look) -> None:
    _stand(pen, look, 12)
    pen.shape(path("-6,0 -4,30 -9,42 9,42 4,30 7,0"), WOOD, shade=4)
    crown = path("-26,40 -28,54 -18,68 -4,80 12,76 26,62 28,46 16,33 0,36 -14,32")
    pen.shape(smooth(crown), look.main, shade=7)
    light, dark = mixed(look.main, (255, 255, 255), 0.3), mixed(look.main, SHADE, 0.28)
    for x, y in ((-15, 60), (-3, 70), (4, 52), (-14, 46)):
        pen.line([(x - 4, y - 2), (x - 1, y + 1), (x + 3, y)], light, 1.8)
    for x, y in ((14, 46), (10, 62), (-4, 42)):
        pen.line([(x - 4, y), (x, y - 2), (x + 3, y + 1)], dark, 1.8)
    if look.ground == "snow":
        pen.shape(smooth(path("-24,62 -15,73 -3,83 12,79 23,67 12,70 2,64 -10,68")), _SNOW, shade=2)
    _foreground(pen, look, 13)


def boat(pen: Pen, look: Look) -> None:
    if look.ground != "sea":
        pen.shadow(oval(2, -0.5, 26, 4), 95)
    pen.shape(box(-1.5, 16, 1.5, 72), WOOD, shade=1)
    pen.shape(smooth(path("3,24 3,68 14,50 26,26 14,24")), (255, 252, 242))
    pen.shape(smooth(path("-3,26 -3,60 -11,46 -21,27 -11,25")), look.main)
    pen.shape([(1, 72), (1, 78), (13, 75)], look.main, shade=1)
    hull = path("-30,19 -23,4 -14,0 16,0 25,4 31,21 10,17 -12,17")
    pen.shape(hull, look.main, shade=5)
    pen.line(path("-26,13 -10,11.5 10,11.5 27,14"), mixed(look.main, (255, 255, 255), 0.65), 2.2)
    if look.ground == "sea":
        pen.line(path("-30,0 -22,3 -14,0 -6,3 2,0 10,3 18,0 26,3 31,0"), _WATER, 2.4)
        pen.line(path("-22,-5 -14,-3 -6,-5 2,-3 10,-5 18,-3"), _WATER, 1.4)
    else:
        _foreground(pen, look, 20)


def car(pen: Pen, look: Look) -> None:
    _stand(pen, look, 27)
    cabin = path("-17,18 -13,33 -8,36 9,36 14,32 19,18")
    pen.shape(smooth(cabin), look.main)
    pen.shape(path("-13,20 -10,31 -1,31 -1,20"), (190, 228, 246), shade=0)
    pen.shape(path("2,20 2,31 9,31 14,20"), (190, 228, 246), shade=0)
    body = path("-28,8 -28,16 -22,20 18,21 26,17 29,12 28,7 20,5 -22,5")
    pen.shape(smooth(body), look.main, shade=5)
    pen.line([(-26, 13), (26, 13)], mixed(look.main, (255, 255, 255), 0.4), 1.4)
    for x in (-15, 16):
        pen.shape(oval(x, 6, 7.5, 7.5), DARK, shade=2)
        pen.shape(oval(x, 6, 3.2, 3.2), (214, 216, 224), shade=0)
    pen.shape(oval(27, 14, 2.4, 3), (255, 244, 200), shade=0)
    if look.time != "day":
        pen.glow(oval(27, 14, 2, 2.6), GLOW)
    pen.shape(oval(-28, 14, 1.6, 2.4), (214, 60, 60), shade=0)
    _foreground(pen, look, 28)


def cat(pen: Pen, look: Look) -> None:
    _stand(pen, look, 18)
    stripe, belly = mixed(look.main, (50, 30, 80), 0.35), mixed(look.main, (255, 255, 255), 0.62)
    tail = path("14,4 24,6 28,16 24,28 20,26 23,16 20,10 12,10")
    pen.shape(smooth(tail), look.main, shade=2)
    body = path("-14,0 -15,12 -11,26 0,32 10,26 16,12 15,0 0,-1")
    pen.shape(smooth(body), look.main, shade=5)
    pen.shape(smooth(path("-7,2 -6,15 0,22 5,15 6,2")), belly, edge=False, shade=0)
    for x in (-7, 7):
        pen.shape(oval(x, 2, 5, 3.4), belly, shade=0)
    for side in (-1, 1):
        pen.shape([(side * 15, 42), (side * 14, 58), (side * 3, 51)], look.main, shade=2)
        pen.shape(
            [(side * 12.5, 46), (side * 12, 54), (side * 6, 50)],
            (246, 176, 176),
            edge=False,
            shade=0,
        )
    pen.shape(smooth(path("-17,36 -14,47 0,52 14,47 17,36 10,27 0,25 -10,27")), look.main, shade=5)
    for x in (-4, 0, 4):
        pen.line([(x, 51), (x * 0.8, 46)], stripe, 1.8)
    for x in (-7, 7):
        pen.shape(oval(x, 38, 3, 3.8), (255, 255, 250), shade=0)
        if look.time == "night":
            pen.glow(oval(x, 38, 2.6, 3.4), (226, 246, 140))
        pen.shape(oval(x + 0.6, 37.6, 1.5, 2.8), DARK, edge=False, shade=0)
    pen.shape([(-2, 33.5), (2, 33.5), (0, 31)], (236, 120, 130), shade=0)
    pen.line(path("-6,29.5 -3,27.8 0,30.5 3,27.8 6,29.5"), DARK, 1.1)
    for side in (-1, 1):
        pen.line([(side * 9, 33), (side * 20, 35)], DARK, 0.8)
        pen.line([(side * 9, 31), (side * 20, 30)], DARK, 0.8)
    _foreground(pen, look, 18)


def flower(pen: Pen, look: Look) -> None:
    _stand(pen, look, 8)
    pen.shape(path("-1.8,0 -1.2,40 1.6,40 2,0"), (84, 152, 72), shade=1)
    pen.shape(smooth(path("0,8 -10,14 -18,24 -8,22 0,13")), _LEAF, shade=2)
    pen.shape(smooth(path("0,4 10,11 17,22 8,19 0,10")), _LEAF, shade=2)
    for i in range(6):
        turn = math.tau * i / 6 + 0.3
        x, y = 11 * math.cos(turn), 46 + 11 * math.sin(turn)
        pen.shape(oval(x, y, 7.5, 7.5), look.main, shade=2.5)
    middle = (255, 244, 206) if look.main[2] < 90 else (252, 210, 84)
    pen.shape(oval(0, 46, 7, 7), middle, shade=3)
    for x in (-2.5, 2.5):
        pen.line([(x, 47), (x, 49)], DARK, 1.3)
    pen.line([(-2.6, 44.4), (0, 43.2), (2.6, 44.4)], DARK, 1.1)
    _foreground(pen, look, 9)


def balloon(pen: Pen, look: Look) -> None:
    for x in (-7, 7):
        pen.line([(x * 1.6, 26), (x * 0.8, 11)], DARK, 1.2)
    pen.shape(path("-6.5,0 -7.5,11 7.5,11 6.5,0"), WOOD, shade=3)
    pen.line([(-7, 6), (7, 6)], mixed(WOOD, DARK, 0.5), 1.2)
    envelope = path("0,20 -12,26 -24,42 -26,60 -16,76 0,82 16,76 26,60 24,42 12,26")
    pen.shape(smooth(envelope), look.main, shade=7)
    pale = mixed(look.main, (255, 255, 255), 0.72)
    middle = path("0,21 -7,30 -11,46 -10,66 0,81 10,66 11,46 7,30")
    pen.shape(smooth(middle), pale, edge=False, shade=3)
    if look.time != "day":
        pen.glow(smooth([(-2, 13), (0, 20), (2, 13)]), GLOW)
    pen.line([(-17, 70), (-21, 60), (-20, 50)], mixed(look.main, (255, 255, 255), 0.6), 2)


def kite(pen: Pen, look: Look) -> None:
    tail = [(-6 + 5 * math.sin(t / 5), 34 - t) for t in range(0, 33, 2)]
    pen.line(tail, DARK, 1.2)
    for step in (5, 10, 14):
        x, y = tail[step]
        bow = [(x - 6, y + 3), (x, y), (x + 6, y + 3), (x + 6, y - 3), (x, y), (x - 6, y - 3)]
        pen.shape(bow, mixed(look.main, (255, 255, 255), 0.3), shade=0)
    sail = path("-6,33 -24,62 4,82 24,58")
    pen.shape(sail, look.main, shade=5)
    pale = mixed(look.main, (255, 255, 255), 0.6)
    pen.shape([(-6, 33), (-24, 62), (-1, 60)], pale, shade=0)
    pen.shape([(-1, 60), (4, 82), (24, 58)], pale, shade=0)
    pen.line([(-24, 62), (24, 58)], DARK, 1)
    pen.line([(-6, 33), (4, 82)], DARK, 1)


def cloud(pen: Pen, look: Look) -> None:
    puffs = path("-29,12 -24,22 -15,23 -9,33 4,36 14,30 20,23 28,20 29,9 18,5 0,6 -20,4")
    pen.shape(smooth(puffs), (250, 251, 255), shade=5)
    pen.line([(-16, 17), (-10, 21), (-4, 19)], (206, 216, 234), 1.6)
    pen.line([(4, 23), (10, 26), (16, 22)], (206, 216, 234), 1.6)


def sun(pen: Pen, look: Look) -> None:
    """The moon at night."""
    if look.time == "night":
        turns = [math.radians(t) for t in range(55, 306, 10)]
        outer = [(2 + 24 * math.cos(t), 52 + 24 * math.sin(t)) for t in turns]
        inner = [(11 + 19 * math.cos(t), 52 + 19 * math.sin(t)) for t in reversed(turns[1:-1])]
        pen.glow([*outer, *inner], (255, 240, 186))
        pen.line([*outer, *inner, outer[0]], (255, 214, 140), 1.4)
        pen.glow(oval(-12, 58, 1.7, 2.4), (120, 96, 70))
        pen.glow(oval(-15, 51, 2.6, 1.8), (255, 206, 150))
        pen.line([(-9.5, 49), (-9.5, 45.5), (-6, 44.5)], (120, 96, 70), 1.4)
        return
    warm = (255, 206, 70) if look.time == "day" else (255, 150, 84)
    for i in range(12):
        turn, reach = math.tau * i / 12, 29 if i % 2 else 26
        tips = [(20, turn - 0.13), (reach, turn), (20, turn + 0.13)]
        pen.glow([(r * math.cos(t), 52 + r * math.sin(t)) for r, t in tips], warm)
    pen.glow(oval(0, 52, 19, 19), mixed(warm, (150, 70, 30), 0.35))
    pen.glow(oval(0, 52, 17.6, 17.6), warm)
    pen.glow(oval(-2, 54, 13, 13), mixed(warm, (255, 255, 230), 0.3))
    for x in (-6, 6):
        pen.glow(oval(x, 55, 1.7, 2.4), (120, 66, 40))
        pen.glow(oval(x * 1.6, 49, 2.6, 1.8), (255, 150, 110))
    smile = [(5.5 * math.cos(t / 10), 50 - 4 * math.sin(t / 10)) for t in range(32)]
    pen.line(smile, (120, 66, 40), 1.4)


DRAWN: dict[str, Callable[[Pen, Look], None]] = {
    drawn.__name__: drawn
    for drawn in (house, tree, boat, car, cat, flower, balloon, kite, cloud, sun)
}
