"""What the model learns: problems in words and digits, encoded, split into training and held out, and drawn in batches.

words      the plain form of a text, and whole numbers as English words, both ways
tokenizer  text as token ids, both ways
problems   single problems, as exact integers
questions  questions in text: one parser and one encoder
task       what every task has
hashing    hashes and permutations without a table
encoding   a table's problems as token ids
table      a calculator's complete table of problems
digits     numbers of any length as arrays, on the device
drawing    problems drawn on the device, and which of them are held out
drawn      tasks with too many problems to list
own        questions and answers of one's own
mixing     tasks mixed by weights that change with the step
"""

from jaxcalc.tasks.drawn import Arithmetic, arithmetic
from jaxcalc.tasks.mixing import Curriculum, curriculum
from jaxcalc.tasks.own import OwnTask, batch_from, task_from
from jaxcalc.tasks.problems import Problem, carry_chain
from jaxcalc.tasks.table import Calculator, calculator
from jaxcalc.tasks.task import Task
from jaxcalc.tasks.tokenizer import Tokenizer
from jaxcalc.tasks.words import number_to_words, words_to_number

__all__ = [
    "Arithmetic",
    "Calculator",
    "Curriculum",
    "OwnTask",
    "Problem",
    "Task",
    "Tokenizer",
    "arithmetic",
    "batch_from",
    "calculator",
    "carry_chain",
    "curriculum",
    "number_to_words",
    "task_from",
    "words_to_number",
]
