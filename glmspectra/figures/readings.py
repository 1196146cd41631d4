"""What stands under each figure: its title, how to read it, and its short name in the list of contents."""

from typing import NamedTuple


class Reading(NamedTuple):
    """Words for one figure. short: its name in the list of contents, the title where it is empty."""

    title: str
    text: str
    short: str = ""


READINGS = {
    "top12": Reading(
        "Share of the 12 largest singular values",
        "Left: the 12 largest over the sum of all singular values, the figure of the original study; right: the same "
        "in energy, which weighs large values more. A layer that stands out here keeps much of itself in a few "
        "directions, so a small rank covers more of it. Noise too is above 12 over the number of directions: "
        "up to 2.4 times that at the left and four times at the right, for square matrices.",
        "Top 12",
    ),
    "ranks": Reading(
        "How many directions a matrix uses",
        "Three counts of directions. Stable rank looks at the largest value only and is small when one direction "
        "towers; effective rank (entropy of the singular values) counts nearly all that matter; the participation "
        "ratio lies between. Compare a line with itself along the depth rather than one matrix type with another: "
        "their sizes differ.",
        "Ranks",
    ),
    "energy_ranks": Reading(
        "Energy ranks",
        "The fewest directions that hold 50 to 99 % of the squared Frobenius norm; the dotted line is all directions "
        "there are. Lines far below it mean that the weight could be cut to a low rank at little cost; lines close "
        "to it mean that no cut of the weight itself is cheap, which says nothing yet of the rank that training "
        "needs.",
        "Energy ranks",
    ),
    "edges": Reading(
        "Directions above noise",
        "Left: singular values above the Marchenko-Pastur edge, which a matrix of independent entries of the same "
        "spread would not have. Right: those above the Gavish-Donoho threshold, where keeping a direction begins to "
        "lower the error of a denoised matrix. The edge of a fused weight is that of its parts stacked, whose scales "
        "may differ; the threshold on the right knows one scale only, so read the parts there (--split).",
        "Above noise",
    ),
    "tails": Reading(
        "Heavy tails",
        "Left: exponent of a power law fitted to the upper tail of the eigenvalues of W^T W; 2 to 4 is usual for "
        "well-trained layers, and above 6 the tail is hardly heavy. Right: distance of the fit from the data. Where "
        "it is above 0.1, do not read the exponent.",
        "Tails",
    ),
    "norms": Reading(
        "Norms and condition",
        "The largest singular value, the root of the sum of squares, and largest over smallest. Norms that grow with "
        "depth are common; a single layer that leaves the line deserves a look at its own figure below. A condition "
        "number is only as good as the smallest singular value, whose error bound stands in the table of singular "
        "values.",
        "Norms",
    ),
    "spectra_by_matrix": Reading(
        "Every layer of one matrix type",
        "One line a layer, dark near the input and light near the output, both axes logarithmic. Lines that lie "
        "together mean that depth does not matter for that matrix; a line that leaves the bundle at the left has a "
        "few strong directions, one that leaves it at the right is closer to losing rank.",
        "By matrix",
    ),
    "sheet_top20": Reading(
        "The 20 largest singular values, layer by layer",
        "All panels have the same axes, so heights compare at a glance; the vertical axis is logarithmic. A steep "
        "start means that one or two directions dominate; a flat line means that the 20 largest are alike.",
        "Top 20 sheet",
    ),
    "sheet_spectra": Reading(
        "The whole spectra, layer by layer",
        "The same for all singular values, on logarithmic axes. The level part is the bulk, which resembles noise; "
        "what rises above it at the left was learned; the fall at the right are directions that the matrix nearly "
        "suppresses.",
        "Spectra sheet",
    ),
    "outside_layers": Reading(
        "Matrices outside the layers",
        "Embeddings, the output matrix and whatever no layer holds, on logarithmic axes. Their first value is often "
        "far above the rest: mostly it is the mean of all rows.",
        "Outside layers",
    ),
    "histograms": Reading(
        "Distribution of the weights by depth",
        "One ridge a layer, the first at the bottom, all with the same bins and scaled to the highest of their "
        "panel; the middle 99.8 % of the weights. A narrow, tall ridge has small weights; ridges of one width and "
        "shape are what a quantiser with one scale likes.",
        "Histograms",
    ),
    "spread": Reading(
        "Spread and shape of the weights",
        "Standard deviation, mean, and the Kolmogorov-Smirnov distance from the normal distribution of the same mean "
        "and spread (0: the same). Means are close to zero in nearly every trained model.",
        "Spread",
    ),
    "outliers": Reading(
        "Outliers by depth",
        "Entries beyond 4 and 6 standard deviations, excess kurtosis (0 for a normal distribution), the largest "
        "entry counted in standard deviations, and the largest row and column norm over the median one (1: all "
        "alike). Layers that are high here lose most under int4 and int8, since one scale must reach the outlier; a "
        "high row or column is an outlier channel.",
        "Outliers",
    ),
    "train_loss": Reading(
        "Training loss",
        "Mean negative log-likelihood per supervised token, natural logarithm. The pale line is what was logged, the "
        "strong one its exponential average. Steps down at the start of each epoch mean that rows are being "
        "memorised.",
    ),
    "eval_loss": Reading(
        "Evaluation loss",
        "The same on rows not trained on. The lowest point is the checkpoint to keep; a rise while the training loss "
        "falls is overfitting.",
    ),
    "eval_perplexity": Reading(
        "Evaluation perplexity",
        "exp of the evaluation loss: the number of tokens among which the model is, on average, undecided.",
    ),
    "learning_rate": Reading(
        "Learning rate",
        "As the optimizer used it: warm-up first where there is one, then the schedule.",
    ),
    "grad_norm": Reading(
        "Gradient norm",
        "Norm of all gradients before clipping. A few spikes at the start are usual; a lasting rise announces "
        "divergence.",
    ),
    "tokens_per_second": Reading(
        "Speed",
        "Tokens that went through the model in a second. Drops are evaluations, checkpoints or a busy machine.",
    ),
    "rank_history": Reading(
        "Rank of each matrix over time",
        "AdaLoRA starts with more directions than the budget and takes them away where its importance score is low. "
        "A panel for each matrix type: a row is a layer, time runs to the right, dark is a low rank. Matrices that "
        "darken early are the ones that the method holds to be unimportant. Below, the sum over all matrices, which "
        "must end at the budget.",
    ),
    "ranks_by_matrix": Reading(
        "Ranks by matrix type and by depth",
        "Left: the mean rank that each criterion gives to a matrix type; right: to a layer. All criteria spend the "
        "same budget, so one that is high somewhere is low elsewhere; the level line is uniform.",
        "By matrix and depth",
    ),
    "ranks_heat": Reading(
        "Rank of every matrix, criterion by criterion",
        "One colour scale for all panels; the number in a cell is the rank. Where panels show the same pattern, the "
        "criteria agree on what matters; where they do not, a pilot is the better judge. A matrix of rank 0 is left "
        "out of training.",
        "Every matrix",
    ),
    "budget_curve": Reading(
        "What a budget buys",
        "Trainable parameters against what they are expected to give, for each criterion. Where a line has become "
        "level, more rank buys little; where lines lie on each other, the choice of criterion does not matter.",
        "Budget curve",
    ),
    "delta_spectra": Reading(
        "Spectra of ΔW by depth",
        "Singular values of the change of each weight, one line a layer, on a logarithmic axis. A line that falls "
        "steeply uses few of its directions, and its rank could be lower; a line that is still high at its end was "
        "short of rank. In the hatched area rounding alone could have made the values.",
        "Spectra of ΔW",
    ),
    "delta_ranks": Reading(
        "Directions that training used",
        "Stable and effective rank of the change. Far below the allotted rank means that the adapter has room it "
        "does not use.",
        "Directions used",
    ),
    "delta_rank_use": Reading(
        "Rank in use and rank allotted",
        "The pale bar is the rank that the adapter was given, the dark one the directions that hold 99 % of the energy "
        "of its change. "
        "Dark bars that reach the top everywhere were short of rank; low ones could give theirs away.",
        "Rank in use",
    ),
    "delta_relative_frobenius": Reading(
        "Size of ΔW relative to W",
        "Frobenius norm of the change over that of the weight. Matrices that moved most are the ones the task asked "
        "of; an even picture means that no part of the model was singled out.",
    ),
    "delta_intruders": Reading(
        "Intruder dimensions",
        "Top directions of W + ΔW that resemble no direction of W (Shuttleworth et al. 2024). Many of them go with "
        "forgetting of what the base could do; a higher rank or a lower learning rate makes fewer.",
    ),
    "delta_amplification": Reading(
        "Amplification factor",
        "How much larger ΔW is, in its own directions, than W is there (Hu et al. 2021, section 7.3). Large values "
        "mean that training amplified directions the base hardly used.",
    ),
    "delta_overlap_left": Reading(
        "Overlap with the top directions of W, left side",
        "How much of the leading left directions of ΔW lies in as many leading directions of W (Hu et al. 2021, "
        "section 7.2): 0 for none, 1 for all; chance is near zero. Low values mean that training wrote to outputs "
        "that W does not emphasise.",
        "Overlap, left",
    ),
    "delta_overlap_right": Reading(
        "Overlap with the top directions of W, right side",
        "The same for the right directions, those of the inputs that are read.",
        "Overlap, right",
    ),
    "delta_growth": Reading(
        "Growth over the checkpoints",
        "Each line is the median over the layers of a matrix type, the band goes from the lowest to the highest "
        "layer. A size that still grows at the end says that training was not over; an effective rank that has "
        "settled early says that a short pilot sees it already.",
        "Growth",
    ),
    "delta_similarity": Reading(
        "Subspace similarity of ΔW and W",
        "φ(i, j) of Hu et al. 2021, section 7: how much of the top i directions of ΔW lies in the top j of W, from 0 "
        "(none) to 1 (all), median over layers, on both sides. Low values at the left edge mean that training did "
        "not push what W already emphasises.",
        "Subspaces",
    ),
    "delta_merged": Reading(
        "How the spectrum of W moved",
        "Change of each of the 20 largest singular values from W to W + ΔW. It is often below one percent even where "
        "behaviour changed much: spectra of whole weights are a weak sign of training, spectra of the change a "
        "strong one.",
        "Merged spectrum",
    ),
    "layer": Reading(
        "Layer",
        "The 20 largest singular values, the whole spectrum, and the density of each matrix with the edge of its bulk.",
    ),
}

# Paragraphs that open a section.
PARAGRAPHS = {
    "summary": (
        "Every matrix that was measured, with the numbers that are drawn below; point at a head to see what a column "
        "means. The stored tables hold more columns than are shown here."
    ),
    "heatmaps": (
        "The same numbers as colours, to find the layer and matrix that differ. Light is high; the scale is "
        "logarithmic where the values span more than a factor of 20; hatched cells were not measured. Any other "
        "column: glmspectra report --column NAME."
    ),
    "layers": (
        "For each layer: the 20 largest singular values; the whole spectrum on logarithmic axes; and the density of "
        "the singular values of each matrix, on a logarithmic scale. In the densities the dashed curve is the "
        "Marchenko-Pastur law of a matrix of noise of the same level, and the vertical line is its edge: noise "
        "alone goes beyond it in one matrix of a hundred. For fused weights that were split the pale area is the "
        "whole, and the lines are its parts, each with its own edge; for those that were not, the edge allows for "
        "parts of unequal scale, the curve does not."
    ),
    "heads": ("One cell for each head, a row for each layer. Heads of one layer often differ more than layers do."),
}
