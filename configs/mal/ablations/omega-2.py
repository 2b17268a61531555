# Strength ω of the pairwise weights: two (as in the paper's text).
_base_ = '../mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(crf_loss=dict(omega=2.0))
