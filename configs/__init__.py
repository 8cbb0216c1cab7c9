"""One short file per experiment. A package so that an installed wheel has them: `pretrain.config.find_config`."""
