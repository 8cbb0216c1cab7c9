"""Detection in mmdet."""

import warnings

warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # mmengine's import of it, which no user can change
