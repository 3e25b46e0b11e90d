"""The demo: does aligning generated images beat mixing them, on real artwork?

  make demo      (python -m align_jax.study --config=configs/demo.py --workdir=runs/demo)
"""
