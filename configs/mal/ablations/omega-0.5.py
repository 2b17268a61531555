# Strength ω of the pairwise weights: half.
_base_ = '../mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(crf_loss=dict(omega=0.5))
