# The fully connected decoder instead of the attention-based one.
_base_ = '../mal_vit-base-mae_8xb4-10e_coco.py'

model = dict(network=dict(decoder=dict(type='FullyConnectedDecoder')))
