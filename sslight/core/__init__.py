"""The ground floor: errors, arguments, configuration, processes, files, logs, formats. Imports nothing of ours."""

import os

# OpenMP threads that spin while they wait made two threads ten times slower than one on virtual machines; sleeping
# ones lose nothing measurable elsewhere. Read once, when torch is first imported, so it is set here, before that.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# OpenCV's own limit lets an image of 3 GB through; this one is PIL's, and is read when cv2 is first imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "89478485")
