# mmdet's runtime, with this package registered and the teacher following the student.
_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['mal_mmdet'], allow_failed_imports=False)
# A resumed training deals the same samples as one that was not interrupted.
randomness = dict(seed=0)
# Pictures of training crops go to <work dir>/<start>/vis_data/vis_image. For TensorBoard (pip install
# tensorboard) a config adds: visualizer = dict(
#     vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
# or, in place of the files: --cfg-options visualizer.vis_backends.0.type=TensorboardVisBackend
custom_hooks = [
    dict(type='MaskVisualizationHook', interval=1000, num_samples=8)
]
default_hooks = dict(
    # Not in custom_hooks, since a config that sets its own would lose them.
    mean_teacher=dict(type='MultiTensorMeanTeacherHook', momentum=0.004),
    loss_check=dict(type='LossCheckHook'),
    checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=3),
    # Every box has a mask; `tools/test.py --show-dir` draws them all, sure or not.
    visualization=dict(type='ReadableVisualizationHook', score_thr=0.0))
