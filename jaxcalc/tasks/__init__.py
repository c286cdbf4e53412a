"""What is learned: problems in words and digits, encoded, split into training and held out, and drawn step by step.

words      whole numbers as English words, both ways
tokenizer  text as token ids, both ways
problems   single problems, as exact integers
task       what every task has
table      a calculator's complete table of problems
drawn      problems too many to list
digits     numbers of any length as arrays, on the device
hashing    which problem comes when, and on which side it is, without a list
"""

from jaxcalc.tasks.drawn import Arithmetic, arithmetic
from jaxcalc.tasks.problems import Expression, Problem, carry_chain
from jaxcalc.tasks.table import Calculator, calculator
from jaxcalc.tasks.task import Task
from jaxcalc.tasks.tokenizer import Tokenizer
from jaxcalc.tasks.words import number_to_words, words_to_number

__all__ = [
    "Arithmetic",
    "Calculator",
    "Expression",
    "Problem",
    "Task",
    "Tokenizer",
    "arithmetic",
    "calculator",
    "carry_chain",
    "number_to_words",
    "words_to_number",
]
