"""Decodes CRIU's images with CRIU's own library: decode.py DIRECTORY... prints one line of JSON for each image."""
import json
import os
import sys

import pycriu

KINDS = ("pagemap-", "mm-", "inventory", "pstree", "stats-")
for directory in sys.argv[1:]:
    for name in sorted(os.listdir(directory)):
        if name.startswith(KINDS):
            with open(os.path.join(directory, name), "rb") as image:
                print(json.dumps([directory, name, pycriu.images.load(image, pretty=False)], default=str))
