"""The package's version; setup.py, CMake and `mmn_fast.__version__` read it from here."""

__version__ = "0.1.0"
