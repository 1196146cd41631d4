# `glmspectra suggest-rank` and the test of its candidates.

ranks-heading = Ranks by { $criterion } ({ $how }): { $parameters } trainable parameters, { $mebibytes } MiB in float32, for { $budget } = { $asked }.
ranks-heading-unspent = Ranks by { $criterion } ({ $how }): { $parameters } trainable parameters, { $mebibytes } MiB in float32, for { $budget } = { $asked }, { $unspent } of the budget is not spent.
ranks-of-matrix = { $matrix }: rank { $least } to { $most }, { $mean } on average
ranks-of-matrix-alike = { $matrix }: rank { $least }
ranks-without = Rank 0, so no adapter and not in target_modules: { $count } of the matrices.
ranks-serve = Serve the adapter with a max_lora_rank of { $rank } or more (vLLM, TensorRT-LLM).
ranks-at-cap = At all the directions that the tables know of: { $count } of the matrices (such as { $first }); a pilot of a larger rank might give them more.
ranks-greedy = Greedy: at most { $gap } of { $value } may be missing to the optimum.
ranks-uniform = These are uniform ranks: the criterion changes nothing at this budget, so take a plain r.
ranks-near-uniform = Only { $moved } of the parameters are elsewhere than with uniform ranks: expect no difference, and prefer a plain r.
ranks-moved = { $moved } of the parameters are elsewhere than with uniform ranks.
ranks-moved-energy = { $moved } of the parameters are elsewhere than with uniform ranks, which hold { $theirs } of the energy of delta-W at this cost where these hold { $own }.
ranks-all-agree = All criteria give the same ranks: limits and budget leave them no choice.
ranks-disagree = Criteria disagree most between { $one } and { $two } ({ $most } of the parameters), least between { $three } and { $four } ({ $least }); on { $name } they say { $low } to { $high }.
ranks-held = { $share } at { $parameters }
ranks-budget-holds = Energy of delta-W that a budget holds: { $pieces } parameters.
ranks-between-pilots = Between { $count } pilots, { $moved } of the parameters move (at most { $largest }), where the suggestion itself is { $from } from uniform.
ranks-between-pilots-noise = Between { $count } pilots, { $moved } of the parameters move (at most { $largest }), more than it moves from uniform ranks: take more pilots, or longer ones.
ranks-between-steps = Between { $count } steps of a pilot, { $moved } of the parameters move (at most { $largest }), where the suggestion itself is { $from } from uniform.
ranks-between-steps-noise = Between { $count } steps of a pilot, { $moved } of the parameters move (at most { $largest }), more than it moves from uniform ranks: take more pilots, or longer ones.
ranks-without-delta = No change of the weights was given. At the same training what a pilot changes gave better ranks than uniform on all three models of our study; the base's effective rank, tried on two, got a sixth to two thirds of that on one and nothing on the other: `--pilot 20` trains one, `--delta` takes an earlier training's.

ranks-study-far = 135M model, a task far from it
ranks-study-same = small ChatGLM2-shaped model, the same task
ranks-study-near = 135M model, a task near to it
ranks-gain = { $least } to { $most } ({ $where })
ranks-gain-unsure = { $least } to { $most } ({ $where }; not sure at every budget)
ranks-gains = What it gains, by our study, in nats a token below uniform's loss over three budgets: { $gains }. Keep alpha in proportion to the rank, as the file has it: with one alpha for all the first gain is gone at r 4 and half gone at r 2. More training gains more than ranks do: uniform ranks that trained for the steps of three pilots too ended 0.107 (135M) and 0.065 (ChatGLM2 shape) below ranks from those pilots. A learning rate twice or half the best cost 0.002 to 0.16 there: tune that first, and train uniform ranks of the same cost beside it (`glmspectra loop` does).
ranks-untested = What it gains: this criterion was not among those our study confirms, so nothing is known; train uniform ranks of the same cost beside it (`glmspectra loop` does).

ranks-menu = Test of the candidates: the pilot cut to each allocation, loss on { $rows } held-out rows, forward passes only: { $losses }.
ranks-menu-won = By that test { $criterion } won, { $gap } from uniform ({ $low } to { $high } over rows). It took { $seconds } s beside { $steps } pilot steps. It sees what the pilot needs, not how a whole training ends: the control of `glmspectra loop` does.
ranks-menu-uniform = By that test uniform ranks won. It took { $seconds } s beside { $steps } pilot steps. It sees what the pilot needs, not how a whole training ends: the control of `glmspectra loop` does.
ranks-menu-unsure = By that test uniform ranks won: { $criterion } is lowest, but not surely below them ({ $low } to { $high }). It took { $seconds } s beside { $steps } pilot steps. It sees what the pilot needs, not how a whole training ends: the control of `glmspectra loop` does.

ranks-file = ranks:  { $path } (glmspectra train --ranks { $path })
ranks-file-only = ranks:  { $path }
ranks-table = table:  { $path }
ranks-export = export: { $path }
ranks-title = criteria at the same budget
ranks-head-criterion = criterion
ranks-head-answer = answer
ranks-head-parameters = parameters
ranks-head-moved = elsewhere than uniform
ranks-answer-score = score
ranks-answer-gain = gain
ranks-answer-threshold = threshold
ranks-answer-mixed = mixed
ranks-how-best-sum = best sum
ranks-how-greedy = greedy
ranks-how-one-global-threshold = one global threshold
ranks-how-every-score-is-0-uniform = every score is 0: uniform
ranks-how-largest-remainder = largest remainder

# What each criterion of `suggest-rank --list` does and where it is from.
ranks-criterion = { $name } ({ $answer }, from { $needs }): { $source }
ranks-criterion-control = { $name } ({ $answer }, a control): { $source }
criterion-uniform = The same rank everywhere, the control that everything else must beat. LoRA as published (Hu et al. 2021).
criterion-random = Random ranks (option: seed): exponential scores, so that shares are spread evenly over the simplex. Any criterion that is no better than this one has found nothing.
criterion-energy-threshold = Directions that hold a share (option, 0.9) of the weight's energy, sum of sigma^2. The usual truncation rule, as in PEFT's convert_to_lora and LoRD, read as the weight's own complexity.
criterion-top-k-share = The original study's reading of ChatGLM2-6B (ShayDuane/ChatGlm2-6B_LoRa). It is the share of the 12 largest singular values in the sum of all, which it took for r = 12. A matrix in which they hold less needs more for the same share: score 1 / share.
criterion-effective-rank = Exponential of the entropy of sigma / sum(sigma): Roy & Vetterli 2007, The effective rank. Proportional. For nothing it gained a sixth to two thirds of what delta-threshold did on one model of our study, and nothing on the other.
criterion-stable-rank = ||W||_F^2 / ||W||_2^2 (Rudelson & Vershynin 2007): SA-LoRA's prior for ranks.
criterion-spikes = Singular values beyond the edge of the Marchenko-Pastur bulk: directions that are not noise. Marchenko & Pastur 1967; Baik, Ben Arous & Peche 2005 for when one shows. Looked worse than uniform in our first measurements.
criterion-gavish-donoho = Singular values over the optimal hard threshold for an unknown noise level (Gavish & Donoho 2014).
criterion-alpha = Exponent of the power law in the tail of the eigenvalues. Martin, Peng & Mahoney 2021, where a large alpha reads as an under-trained layer, which gets more (so does AlphaLoRA, Qing et al. 2024). Others draw the opposite conclusion.
criterion-quantisation = σ_i² of W - Q(W): the energy that one more direction gives back to a quantized base. LoftQ's view (Li et al. 2023), with its rank shared out over the matrices instead of the same everywhere.
criterion-quantisation-rank = Directions needed to recover a share (option, 0.5) of the energy of W - Q(W), proportional. LoftQ's view (Li et al. 2023). Where the stored singular values do not reach it, every further direction is taken to hold as much as the last of them, a lower bound of the rank.
criterion-gradient = σ_i² of the loss gradient over a few batches: the first-order decrease that direction i offers a step. The view of LoRA-GA (Wang et al. 2024) and GaLore (Zhao et al. 2024). Looked worse than uniform in our first measurements.
criterion-gradient-importance = Mean of |W * dL/dW| over a few batches: GoRA (He et al. 2025), its importance, proportional.
criterion-delta-threshold = Keep every direction whose sigma_i of ΔW is over one global threshold that the budget sets. ΔW is of a pilot's adapter or of full fine-tuning. Ours; better than uniform in our study at three budgets on two models with a task far from them, and never worse on one near. Several pilots are averaged value by value.
criterion-delta-fan = sigma_i of ΔW times sqrt(cols / rows), one global threshold. The size that muP gives an update (Yang et al. 2023), since plain ones grow with the square root of the rows. Not confirmed by our study.
criterion-delta-relative = sigma_i of ΔW over the largest singular value of the base's weight, one global threshold. Not confirmed by our study.
criterion-delta-adamw = sigma_i of V^(1/4) ΔW V^(1/4), one global threshold; V: AdamW's second moments, read from optimizer.pt. A direction counts as AdamW on W itself would weigh it; V is taken for separable as in Adafactor (Shazeer & Stern 2018). Ours, delta-preconditioned in our study: the best by far on one base, as good as delta-threshold on the second, worse than it on the third.
criterion-delta-tempered = As delta-adamw with the eighth root of V, whose mean in each matrix is clipped to the 10 and 90 % quantiles. Ours, against a few matrices with huge gradients deciding alone. Between delta-threshold and delta-adamw on the one base where our study confirms it.
criterion-delta-energy = σ_i² of ΔW: the energy of the change that direction i keeps (Eckart & Young 1936). That is the most for the parameters. Close to delta-threshold in our first measurements; prefers small matrices more.
criterion-delta-rank = Directions that hold a share (option, 0.9) of the energy of ΔW, proportional. LoRA-Squeeze and adapter audits (gradience's energy@0.90) call this the rank in use. Blind to how large the change is.
