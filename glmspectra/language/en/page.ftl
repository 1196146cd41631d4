# Titles, leads, facts and explanations of pages.

page-title-svd = Spectra of { $name }
page-title-values = Values of { $name }
page-title-delta = What training changed: { $name }
page-title-ranks = Ranks for { $name }
page-title-training = Training of { $name }
page-title-trainings = { $count } training runs
page-title-evaluate = Evaluation of { $name }
page-title-loop = From spectra to a tuned { $name }
page-title-compare = { $names } side by side
page-title-overview = Reports
page-lead-svd = Singular values of every matrix, with error bounds: what is learned, what resembles noise, and what stands out.
page-lead-values = How the entries of every matrix are distributed, and what stands out.
page-lead-delta = Singular values of the change of every matrix: how large it is, how many directions it uses, and where it lies in the base.
page-lead-ranks = A rank for every matrix under one budget, beside uniform ranks and other criteria.
page-lead-training = Curves of the training log, computed anew where the log is wrong.
page-lead-evaluate = Losses on rows that were not trained on, and answers beside each other.
page-lead-loop = Spectra of the base, ranks from a short pilot, training with them beside uniform ranks, and what came out.
page-lead-compare = The same measures on the same axes, by relative depth.
page-lead-overview = Every report in this folder.

page-set-weight = weights W
page-set-merged = weights after training, W + ΔW
page-set-quant-error = error of quantization
page-set-delta = change ΔW
page-set-gradient = gradients
page-set-ranks = ranks

page-rank-difference = chosen rank − uniform ({ $criterion })
page-rank-difference-meaning = Above 0: more directions than with uniform ranks of the same cost.
page-rank-chosen = chosen rank ({ $criterion })
page-rank-allotted = rank allotted
page-rank-allotted-meaning = Rank of the adapter that was trained.
page-rank-used = rank in use
page-rank-used-meaning = Directions that hold 99 % of the energy of ΔW.
page-rank-by = { $criterion }
page-rank-meaning = Directions that this criterion gives to the matrix under the budget.

page-fact-checkpoint = checkpoint
page-fact-fingerprint = fingerprint
page-fact-matrices = matrices
page-fact-layers = layers
page-fact-method = method
page-fact-dtype = stored as
page-fact-device = measured on
page-fact-time = measured at
page-fact-model = model
page-fact-adapter = adapter
page-fact-criterion = criterion
page-fact-parameters = trainable parameters
page-fact-pilots = pilots
page-pilots = { $seeds } of { $steps } steps

page-incomplete = This run is not complete: what is finished is shown, and the command that began it goes on from there.
page-unreadable = Not read, since the format of the weight is refused or a part of it is missing: { $names }. `glmspectra inspect` says why.
page-nonfinite = NaN, infinity or numbers beyond float32 in { $names }: such a matrix has no spectrum, and its cells are gray.
page-more = { $names } and { $count } more

page-head-model = model
page-head-loss = loss (nats per token, over tokens)
page-head-perplexity = perplexity
page-head-accuracy = token accuracy
page-head-rouge = ROUGE-L
page-head-bleu = BLEU
page-head-parameters = trainable parameters
page-outcome-caption = On rows not trained on. The loss here is averaged over tokens; the intervals above average over rows, so the two differ.
page-model-base = base
page-model-tuned = tuned
page-model-suggested = suggested ranks
page-model-uniform = uniform ranks

page-head-run = run
page-head-steps = steps
page-head-last-loss = last training loss
page-head-best-loss = lowest evaluation loss
page-head-best-step = at step
page-head-best-perplexity = perplexity there
page-runs-caption = Training losses are the mean of the last that were logged, five at most.

page-head-report = report
page-head-about = about
page-head-finding = first finding
page-head-gain = gain over base
page-head-mean-rank = mean rank
page-head-effective-rank = median effective rank
page-head-curve = by depth or over time
page-overview-caption =
    { $count ->
        [one] One report in this folder.
       *[other] { $count } reports in this folder.
    }
page-about-svd = spectra
page-about-values = values
page-about-delta = changes
page-about-ranks = ranks
page-about-training = training
page-about-evaluate = evaluation
page-about-loop = loop
page-about-compare = comparison

page-files-ranks = Ranks used: { $path }
page-files-adapter = Adapter: { $path }
page-files-tables = Tables: { $path }
page-files-reports = Reports of every run: { $path }
page-files-next-same = The training had only the directions that its ranks gave it and used all of them, so that what it changed suggests no other ranks at this budget. For the next turn take a pilot of a higher rank, or a smaller budget.
page-files-next = What the training itself changed would suggest other ranks for { $share } of the parameters: { $path } holds them for the next turn of the loop.

page-reading-one = A weight matrix W turns the ball of all inputs of length 1 into an ellipsoid. Its half-axes are the singular values σ₁ ≥ σ₂ ≥ …: how strongly W passes on each of its directions. All of them together are its spectrum.
page-reading-two = A matrix of pure noise has a spectrum too, and it ends at a known edge. Values above the edge were learned; a steep start means that a few directions do most of the work, a level line that many share it. Stable rank and effective rank say how many.
page-reading-three = LoRA adds a change ΔW of few directions, its rank. The spectrum of ΔW shows how many of them training used, and so which matrices could do with fewer and which were short of room.
term-singular-value = Singular value σ
term-singular-value-means = The strength with which a matrix passes on one direction.
term-spectrum = Spectrum
term-spectrum-means = All singular values of a matrix, largest first.
term-stable-rank = Stable rank
term-stable-rank-means = Sum of σ² over σ₁²: how many directions as strong as the first would hold the same energy.
term-effective-rank = Effective rank
term-effective-rank-means = Exponential of the entropy of the spectrum: how many directions share in it.
term-spectral-norm = Spectral norm
term-spectral-norm-means = The largest singular value; no input grows by more.
term-marchenko-pastur = Marchenko-Pastur edge
term-marchenko-pastur-means = Where the singular values of noise of the same level end.
term-power-law = Power-law exponent α
term-power-law-means = How heavy the tail of the spectrum is; 2 to 4 is usual for trained layers, above 6 is close to random.
term-delta = ΔW
term-delta-means = The change that training made to a weight.
term-intruder = Intruder dimension
term-intruder-means = A strong direction of W + ΔW that resembles none of W; it goes with forgetting.
term-lora-rank = Rank of an adapter
term-lora-rank-means = The number of directions a LoRA adapter may change; it costs rows + columns parameters each.
term-loss = Loss, perplexity
term-loss-means = Mean negative log-likelihood of the right token in nats; perplexity is its exponential.
term-layer = Layer
term-layer-means = Counted from 0, nearest the input.
term-matrix = Matrix
term-matrix-means = The weight's name within its layer, after it the part (q, k, v; gate, up), the head or the expert.
term-criterion = Criterion
term-criterion-means = A rule that shares a budget of ranks out among the matrices.

# What the columns of small tables mean.

page-head-model-means = The base, or the base with what was trained.
page-head-loss-means = Mean negative log-likelihood of the right token over all tokens, in nats.
page-head-perplexity-means = Exponential of the loss: among how many tokens the model is, on average, undecided.
page-head-accuracy-means = Share of the tokens that the model holds for the most likely and that are right.
page-head-rouge-means = Longest common subsequence of answer and reference, by character, 0 to 100.
page-head-bleu-means = Overlap of up to four characters in a row between answer and reference, 0 to 100.
page-head-parameters-means = Numbers that training could change.
page-head-run-means = One training.
page-head-steps-means = Updates by the optimizer.
page-head-last-loss-means = Mean of the last training losses that were logged, in nats per token: of five, or of half of a log that is shorter than ten.
page-head-best-loss-means = The lowest loss on rows not trained on, in nats per token.
page-head-best-step-means = The step at which the evaluation loss was lowest.
page-head-best-perplexity-means = Exponential of the lowest evaluation loss.
page-head-report-means = A page of this folder.
page-head-about-means = What the page is about.
page-head-finding-means = What stands out most on the page.
page-head-gain-means = Loss of the base less that after training, in nats per token, averaged over rows.
page-head-mean-rank-means = Mean of the ranks that the chosen criterion gives.
page-head-effective-rank-means = Median over the matrices in layers of how many directions share in the spectrum.
page-head-curve-means = The median effective rank by depth, or the loss over the training.
