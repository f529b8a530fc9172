import json

import numpy as np
import pytest
from tensorboard_events import scalars

from hiermusic.errors import UserError
from hiermusic.train.log import Log, read_metrics
