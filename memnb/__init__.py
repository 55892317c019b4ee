__version__ = "0.1.0"
from .papers import cite
