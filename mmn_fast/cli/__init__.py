"""The command line: `mmn-fast COMMAND`; importing it registers the commands of each module."""

from mmn_fast.cli import export, ground, predict, show, train
from mmn_fast.cli.app import app, main
from mmn_fast.cli.index import commands as index_commands
from mmn_fast.cli.index import search
from mmn_fast.cli.presets import commands as preset_commands
from mmn_fast.cli.serving import commands as serving_commands
from mmn_fast.cli.tubes import data as tube_data
from mmn_fast.cli.videos import features

__all__ = [
    "app",
    "export",
    "features",
    "ground",
    "index_commands",
    "main",
    "predict",
    "preset_commands",
    "search",
    "serving_commands",
    "show",
    "train",
    "tube_data",
]
