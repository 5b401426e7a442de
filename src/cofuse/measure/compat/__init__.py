"""What a change does to a model's output: predicted from statistics, measured on data, compared with others'.

`cofuse.measure.compat.measured` and `.quadratic` need torch and are imported by name.
"""

from .correlation import Correlation, correlate
from .peers import distances
from .predicted import Predicted, predict

__all__ = ["Correlation", "Predicted", "correlate", "distances", "predict"]
