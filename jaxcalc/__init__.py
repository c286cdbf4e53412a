from jaxcalc.model import ModelConfig, init, apply
from jaxcalc.tasks import calculator, batch_at
from jaxcalc.losses import loss
from jaxcalc.training import create_state, train_step, train_steps
from jaxcalc.evaluation import evaluate
