"""Where problems come from: data sets by name, tables by file, functions by module.

Nothing is imported until a problem is loaded, so that lists and refusals come at once.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from evenhand.text import LINE, quoted

DESIGNS = ("hold-out", "k-fold", "time")
"""How data can be divided into train, validation and test, see `data/splits.py`."""


TABLES = (".csv", ".tsv", ".txt", ".parquet", ".arff")
"""What a table's file name ends in, each also with `.gz`; see `tables/reading.py`."""
KINDS = ("numeric", "boolean", "category", "date", "labels")
"""What a column of a table can be, see `tables/kinds.py`."""


@dataclass(frozen=True)
class Source:
    """A problem that can be asked for by name; its module is imported when it is.

    `maker` is the function there that takes a seed and gives the problem. What is `by_hand` needs
    files that nobody but the user can fetch; its maker says where they are to be had.
    """

    name: str
    module: str
    summary: str
    citation: str
    maker: str = "load"
    by_hand: bool = False


SOURCES: tuple[Source, ...] = (
    Source(
        "digits",
        "evenhand.data.digits",
        "two handwritten digits on one picture: classify both, redraw the right one",
        "Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0)",
    ),
    Source(
        "scans",
        "evenhand.data.scans",
        "noisy scans of digits: read them (one of eight is labelled), clean them, measure their "
        "slant",
        "Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0)",
    ),
    Source(
        "quadrants",
        "evenhand.data.quadrants",
        "points in a square: the quadrant, and inside the unit circle or not",
        "Bellavia, Della Santa & Papini, Optim. Methods Softw. 2026, arXiv 2312.16340",
    ),
    Source(
        "multimnist",
        "evenhand.data.multimnist",
        "two MNIST digits on one picture: tell both (`evenhand data mnist` first)",
        "LeCun, Cortes & Burges, MNIST (CC BY-SA 3.0); Sener & Koltun, NeurIPS 2018, "
        "arXiv 1810.04650",
    ),
    Source(
        "multimnist-redraw",
        "evenhand.data.multimnist",
        "two MNIST digits on one picture: tell one, redraw the other (likewise)",
        "LeCun, Cortes & Burges, MNIST (CC BY-SA 3.0); Nakamura, Grassi & Wolf, Neurocomputing "
        "511 (2022), arXiv 2204.06698",
        maker="load_redraw",
    ),
    Source(
        "multimnist-many",
        "evenhand.data.multimnist",
        "two MNIST digits on one picture, eight tasks of different nature (likewise)",
        "LeCun, Cortes & Burges, MNIST (CC BY-SA 3.0); pictures as in Sener & Koltun, NeurIPS "
        "2018, the tasks are ours",
        maker="load_many",
    ),
    Source(
        "wireless",
        "evenhand.data.wireless",
        "wireless signals over the air: modulation and type (a file to be fetched by hand)",
        "Jagannath & Jagannath, RadCom (CC BY-NC-SA 4.0), arXiv 2101.10254",
        by_hand=True,
    ),
    Source(
        "signals",
        "evenhand.data.wireless",
        "a stand-in for wireless, made here: modulation and type of nine kinds of signals",
        "nine kinds as in Jagannath & Jagannath, arXiv 2101.10254; the waveforms are ours",
        maker="load_stand_in",
    ),
    Source(
        "celeba",
        "evenhand.data.celeba",
        "faces: 40 attributes, each a task (files to be fetched by hand)",
        "Liu, Luo, Wang & Tang, ICCV 2015 (for non-commercial research); network as in Pascal et "
        "al., arXiv 2109.11678",
        by_hand=True,
    ),
    Source(
        "cityscapes",
        "evenhand.data.cityscapes",
        "street scenes: each pixel in or out of seven groups of classes (likewise)",
        "Cordts et al., CVPR 2016 (for non-commercial use); tasks as in Pascal et al., arXiv "
        "2109.11678",
        by_hand=True,
    ),
    Source(
        "cityscapes-scene",
        "evenhand.data.cityscapes",
        "street scenes: classes, instances, disparity (likewise)",
        "Cordts et al., CVPR 2016 (for non-commercial use); tasks as in Sener & Koltun, NeurIPS "
        "2018, arXiv 1810.04650",
        maker="load_scene",
        by_hand=True,
    ),
    Source(
        "cityscapes-prepared",
        "evenhand.data.cityscapes_prepared",
        "street scenes as MTAN and LibMTL read them: seven classes, inverse depth (likewise)",
        "Cordts et al., CVPR 2016 (for non-commercial use); files of Liu, Johns & Davison, CVPR "
        "2019",
        by_hand=True,
    ),
    Source(
        "nyuv2",
        "evenhand.data.nyuv2",
        "rooms: classes, depth, surface normals (likewise)",
        "Silberman, Hoiem, Kohli & Fergus, ECCV 2012 (no licence stated); files of Liu, Johns & "
        "Davison, CVPR 2019",
        by_hand=True,
    ),
    Source(
        "nyuv2-official",
        "evenhand.data.nyuv2_official",
        "rooms as published, in one MATLAB file: classes, depth (likewise)",
        "Silberman, Hoiem, Kohli & Fergus, ECCV 2012 (no licence stated)",
        by_hand=True,
    ),
)


def is_table(text: str) -> bool:
    """Whether it names a table's file; whether there is one, reading it tells."""
    return text.lower().removesuffix(".gz").endswith(TABLES) and not is_function(text)


def is_function(text: str) -> bool:
    """Whether it names a function: `package.module:function` or `file.py:function`."""
    module, colon, function = text.rpartition(":")
    return bool(colon and module) and function.isidentifier()


def checked(text: str) -> str:
    """What a source is called, wherever one works: paths are made whole.

    Raises:
        ValueError: it is neither table nor function nor a data set's name.
    """
    if is_table(text):
        return str(Path(text).absolute())
    if is_function(text):
        module, _, function = text.rpartition(":")
        return f"{Path(module).absolute()}:{function}" if module.endswith(".py") else text
    return source(text).name


def called(text: str) -> str:
    """A short name for folders: that of the data set, the file or the function."""
    if is_function(text):
        module, _, function = text.rpartition(":")
        stem = Path(module).stem if module.endswith(".py") else module.rpartition(".")[2]
        return f"{stem}-{function}"
    return Path(text.removesuffix(".gz")).stem if is_table(text) else text


def source(name: str) -> Source:
    """The data set called `name`.

    Raises:
        ValueError: there is none; the message names the nearest ones.
    """
    known = {entry.name: entry for entry in SOURCES}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name[:LINE], known, n=3, cutoff=0.4) or sorted(known)
    other = (
        ""
        if name.isidentifier()
        else (f"; a table's file ends in {', '.join(TABLES)}, a function is module:function")
    )
    raise ValueError(
        f"no data set is called {quoted(name)}; did you mean {', '.join(near)}?{other}"
    )
