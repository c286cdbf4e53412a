"""What a training run is asked for, what makes it survive, what it leaves behind, and reading it back.

config      the configuration: what tyro parses and config.json stores
configfile  config.json, in the format that is written now and the one before
options     the command line of train.py
session     what makes a training loop survive
placement   the devices of a run, and its compiled steps
guard       steps that are not finite
asking      one question to a trained model
claim       the folder of a new run, and the right to write to a folder
folder      the files of a run
replay      a run taken again, bit for bit
account     the ledger of a question over a run
summary     summary.json
metrics     metrics.jsonl
checkpoint  the whole training state at a step
manifest    what a checkpoint says about itself, and finding damage
results     the end of a run: evaluation, summary, what is printed
share       the file in which a trained model is shared
stablehlo   a trained model as a program that needs no jaxcalc
report      tables and progress in the terminal
style       the style of all figures
figures     the learning curve
pipeline    the way from text to answer, and the blame on the way back
text        numbers for people
programs    compiled programs, kept on disk
files       paths, and writing a file whole or not at all
cli         how a script reads its command line and ends
"""

from jaxcalc.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
