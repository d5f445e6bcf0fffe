"""The configurations and suites that the repository has."""

from pathlib import Path

from schemabank.config.settingsfile import SettingsFile

FILES = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
SUITES = [path for path in FILES if "arms" in SettingsFile(path, may_extend=True).tree]
CONFIGS = [path for path in FILES if path not in SUITES]
