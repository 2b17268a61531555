# The paper's schedule in mixed precision.
_base_ = './mal_10e.py'

optim_wrapper = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
