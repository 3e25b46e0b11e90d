"""Arms that follow batch plans, mined with the base of their seed."""

import copy

import pytest

from align_jax.config import build
from align_jax.data.sources import open_source
from align_jax.errors import UserError
from align_jax.mining.plan import load_plan
from align_jax.study.config import Arm, StudyConfig, train_config
from align_jax.study.plans import mine_plan, plan_file, planned
from align_jax.study.specs import Specs
from align_jax.synth.trained import train_once
from tests import tiny

TRAIN = tiny.config_values(
  steps=2, batch_size=8, model=tiny.SMALL_MODEL, checkpoint={'every': 0, 'keep': 1}
)
HARD = {'strategy': 'saha', 'k': 3, 'generated': 24, 'settings': {'mult': 2}}


def study(**plans) -> StudyConfig:
  values = {
    'title': 'Plans',
    'seeds': (0,),
    'data': {'real': 'folder:x'},
    'base': TRAIN,
    'arm': TRAIN,
    'arms': ({'name': 'base', 'title': 'base', 'stages': ()},),
    'sets': {'some': {}},
    'plans': plans,
  }
  return build(StudyConfig, values)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A base and the sources of a study: (folder, base, specs)."""
  folder = tmp_path_factory.mktemp('plans')
  real = f'folder:{tiny.photo_folder(folder / "photos", each=4)}'
  source = open_source(real)
  partners = [source[i] for i in range(len(source))]
  generated = tiny.generated_shards(folder / 'generated', partners)
  values = copy.deepcopy(TRAIN)
  values['data']['real'] = real
  train_once(train_config(values, {}, {}, 'base'), folder / 'base', 'base')
  return folder, folder / 'base', Specs(real, real, real, generated, generated)


def test_an_arm_follows_the_plan_that_its_base_has_mined(base):
  folder, run, specs = base
  config = study(hard=HARD)
  for _ in range(2):  # the second time nothing is done
    mine_plan(config, specs, folder, run, 'hard', 0)
  plan = load_plan(plan_file(folder, 0, 'hard'))
  assert (plan.strategy, plan.size, plan.records) == ('saha', 4, 24)
  assert 'pairs=generated_to_real' in plan.data
  names = {name for row in plan.clusters for name in row}
  assert names <= {f'generated-{i}' for i in range(24)}

  stage = {
    'model': {**tiny.TRACKS, 'init': f'run:{run}'},
    'objective': tiny.GMAIL,
    'data': {'real': '{real}', 'generated': '{paired}', 'plan': '{plan:hard}'},
  }
  given = specs.names(24, 24, '') | {'plan:hard': str(plan_file(folder, 0, 'hard'))}
  train_once(train_config(TRAIN, stage, given, 'arm'), folder / 'arm', 'arm')
  told = planned(config, folder, Arm('arm', 'arm', (stage,)), 0)
  # a caption for each kind of picture: four of each are matches of one another
  assert 0 < told['plan.false_negatives'] < 1
  assert set(told) >= {'plan.true_negative_cosine', 'plan.members', 'plan.above'}
  assert planned(config, folder, Arm('arm', 'arm', ({'data': {'real': '{real}'}},)), 0) == {}


def test_a_plan_that_was_mined_otherwise_is_refused(base):
  folder, run, specs = base
  mine_plan(study(other=HARD), specs, folder, run, 'other', 0)
  with pytest.raises(UserError, match=r'was made with k=3, and is asked for with 2'):
    mine_plan(study(other=HARD | {'k': 2}), specs, folder, run, 'other', 0)


def test_what_a_plan_refuses():
  with pytest.raises(UserError, match="no strategy 'sahha'; did you mean 'saha'"):
    study(hard={'strategy': 'sahha'})
  with pytest.raises(UserError, match='k=0 must be at least 1'):
    study(hard={'strategy': 'saha', 'k': 0})
