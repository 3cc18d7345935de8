"""Writes a config of your own, a copy of one that comes with tfkd.

    python -m tfkd.init DIR [CONFIG]

writes DIR/config.py: image_folder, for a folder of images and models of your own, unless CONFIG
names another one, such as digits. It is a Python file, whose comments say what to edit. What is
there is not replaced.
"""

import sys

import tfkd_cli

if __name__ == "__main__":
    sys.exit(tfkd_cli.init(sys.argv[1:]))
