"""SmoothQuant (Xiao et al., 2023): the outlier channels of what enters a matrix are made smaller, and the matrix's rows
for them larger, so that both fit into int8.

The paper folds the factors into the norm before. In a post-norm layer that norm feeds the residual too, so here they
stay with the matrix (`Int8.factor`), and the input is multiplied by them where it is quantised anyway.

Dimensions: K channels that enter the matrix, N that leave it.
"""

import numpy as np

LOUDER = 8


def factors(largest_K: np.ndarray, w_KN: np.ndarray, alpha: float) -> np.ndarray:
    """float32 [K]: what to multiply the input by, and to divide the rows of the matrix by, from the largest magnitude
    of each input channel: max|w_k|^(1 - alpha) / max|x_k|^alpha, relative to that of the median channel, and 1 for
    channels that are always zero on either side. No channel grows more than `LOUDER` times: one that a sample hardly
    has would drown all others in a text that has it.

    The nearest powers of two are taken: multiplying by them rounds nothing, so that the float product stays the same
    to the last bit.
    """
    rows_K = np.abs(w_KN).max(1)
    there_K = (largest_K > 0) & (rows_K > 0)
    if not there_K.any():
        return np.ones(len(rows_K), np.float32)
    wanted = (1 - alpha) * np.log2(rows_K[there_K], dtype=np.float64) - alpha * np.log2(
        largest_K[there_K], dtype=np.float64
    )
    factor_K = np.ones(len(rows_K), np.float32)
    factor_K[there_K] = np.minimum(np.exp2(np.round(wanted - np.median(wanted))), LOUDER)
    return factor_K
