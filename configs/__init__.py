"""One short file per experiment. A package so that an installed wheel has them: `sslight.core.config.find_config`."""
