"""Write a feed in a process of its own; print its peak memory in MB."""

import dataclasses
import resource
import sys
from pathlib import Path

from feeds import SMALL, write

write(Path(sys.argv[1]), dataclasses.replace(SMALL, views=int(sys.argv[2]), moments=20))
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))
