# SPDX-License-Identifier: Apache-2.0
AREA_LIMITS = (32.0**2, 96.0**2)
"""Areas in px² up to which COCO calls a box small and medium.

The decoder's scales, the labels' thresholds and the metrics all part the boxes here; a box on a
limit belongs to the lower size.
"""
