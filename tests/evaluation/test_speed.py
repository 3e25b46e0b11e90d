"""The section on training speed: what its numbers are made of."""

import xml.etree.ElementTree as ET

import pytest

from align_jax.evaluation.report import Report, render
from align_jax.evaluation.speed import speed_section

START = {'at': 0.0, 'step': 0, 'devices': 8, 'chip': 'TPU v5e', 'peak_flops': 197e12}
START |= {'step_flops': 8 * 197e12 * 0.05}  # at 100 ms a step: half of the peak


def line(step, data=0.01, compute=0.09, save=0.0, evaluation=0.0, **more):
  return {
    'step': step,
    'loss': 1.0,
    'examples_per_s': 64 / (data + compute),
    'time/step_s': data + compute,
    'time/data_s': data,
    'time/transfer_s': 0.0,
    'time/compute_s': compute,
    'time/save_s': save,
    'time/eval_s': evaluation,
    'goodput': 0.9,
    'restarts': 1.0,
    'memory/host_peak_gib': 1.5,
    **more,
  }


def test_numbers_of_a_run_on_a_known_chip():
  lines = [
    line(10, data=1.01, mfu=0.1, **{'time/compile_s': 30.0}),  # begins slowly
    {'step': 20, 'retrieval.t2i.r1': 0.5},  # an evaluation has no times
    line(20, mfu=0.5, **{'memory/device_peak_gib': 7.0}),
    line(30, mfu=0.5, evaluation=0.1, **{'memory/device_peak_gib': 8.25}),
  ]
  section = speed_section(lines, [START])
  facts = dict(section.rows)
  assert facts['Steps'] == '30'
  assert facts['Examples per second'] == '640'
  assert facts['Time of a step'] == '100 ms'
  assert facts['MFU'] == '50.0%'
  # of 10 × (1.1 + 0.1 + 0.2) seconds
  assert facts['Share of data wait'] == '73.6%'
  assert facts['Share of evaluation'] == '7.1%'
  assert (facts['Goodput'], facts['Restarts']) == ('90.0%', '1')
  assert facts['Peak memory, device'] == '8.25 GiB'
  assert facts['Peak memory, host'] == '1.50 GiB'
  assert facts['Compiling'] == '30.0 s'
  assert '7.88e+13 / (0.1 s × 8 × 197 TFLOP/s), TPU v5e, bf16' in section.note


def test_an_unknown_chip_has_no_mfu():
  section = speed_section([line(10)], [{**START, 'chip': '', 'peak_flops': 0.0}])
  assert 'MFU' not in dict(section.rows) and 'MFU' not in section.note
  assert 'Peak memory, device' not in dict(section.rows)


def test_a_line_weighs_as_many_steps_as_it_speaks_of():
  # the second start left 10 steps without a line; the next one stands for them
  lines = [line(10, data=0.03), line(40, data=0.01)]
  share = dict(speed_section(lines, [START, {**START, 'step': 20}]).rows)['Share of data wait']
  assert share == f'{(10 * 0.03 + 30 * 0.01) / (10 * 0.12 + 30 * 0.10):.1%}'


@pytest.mark.parametrize('lines', [1, 2, 1000])
def test_the_page_shows_table_and_drawing(lines):
  section = speed_section([line(5 * (i + 1), data=0.01 * (i % 7)) for i in range(lines)], [START])
  ET.fromstring(section.figures[0].image)
  assert len(section.figures[0].image) < 60_000
  page = render(Report('Run', 'Fast.', (section,)))
  assert 'Training speed' in page and page.count('<figure>') == 1
  assert '<th scope="row">Goodput</th><td>90.0%</td>' in page


def test_peaks_are_cut_off_and_that_is_said():
  lines = [line(10 * (i + 1), evaluation=9.0 * (i == 3)) for i in range(9)]
  assert 'Higher peaks are cut off' in speed_section(lines, [START]).figures[0].caption
  assert 'cut off' not in speed_section(lines[:3], [START]).figures[0].caption


def test_a_run_without_times_has_no_section():
  section = speed_section([{'step': 1, 'loss': 2.0, 'examples_per_s': 3.0}], [])
  assert 'Training speed' not in render(Report('Run', 'Old.', (section,)))
