# `glmspectra suggest-rank` and the test of the menu.

ranks-heading = Ranks by { $criterion } ({ $how }): { $parameters } trainable parameters, { $mebibytes } MiB in float32, for { $budget } = { $asked }.
ranks-heading-unspent = Ranks by { $criterion } ({ $how }): { $parameters } trainable parameters, { $mebibytes } MiB in float32, for { $budget } = { $asked }, { $unspent } of the budget is not spent.
ranks-of-matrix = { $matrix }: rank { $least } to { $most }, { $mean } on average
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
ranks-without-delta = No change of the weights was given. What a short pilot changes gave better ranks than uniform on both models of our study; the base's effective rank got a sixth to two thirds of that on one and nothing on the other: `--pilot 80` trains one, `--delta` takes an earlier training's.

ranks-study-far = 135M model, a task far from it
ranks-study-same = small ChatGLM2-shaped model, the same task
ranks-study-near = 135M model, a task near to it
ranks-gain = { $least } to { $most } ({ $where })
ranks-gain-unsure = { $least } to { $most } ({ $where }; not sure at every budget)
ranks-gains = What it gains, by our study, in nats a token below uniform's loss over three budgets: { $gains }. Keep alpha in proportion to the rank, as the file has it: with one alpha for all the first gain is gone. A learning rate twice or half the best cost 0.002 to 0.16 there: tune that first, and train uniform ranks of the same cost beside it (`glmspectra loop` does).
ranks-untested = What it gains: this criterion was not among those our study confirms, so nothing is known; train uniform ranks of the same cost beside it (`glmspectra loop` does).

ranks-menu = Test of the menu: the pilot cut to each allocation, loss on { $rows } held-out rows, forward passes only: { $losses }.
ranks-menu-won = By that test { $criterion } won, { $gap } from uniform ({ $low } to { $high } over rows). It took { $seconds } s beside { $steps } pilot steps. It sees what the pilot needs, not how a whole training ends: the control of `glmspectra loop` does.
ranks-menu-uniform = By that test uniform ranks won. It took { $seconds } s beside { $steps } pilot steps. It sees what the pilot needs, not how a whole training ends: the control of `glmspectra loop` does.
ranks-menu-unsure = By that test uniform ranks won: { $criterion } is lowest, but not surely below them ({ $low } to { $high }). It took { $seconds } s beside { $steps } pilot steps. It sees what the pilot needs, not how a whole training ends: the control of `glmspectra loop` does.

ranks-file = ranks:  { $path } (glmspectra train --ranks { $path })
ranks-file-only = ranks:  { $path }
ranks-table = table:  { $path }
ranks-export = export: { $path }
ranks-title = criteria at the same budget
ranks-head-criterion = criterion
ranks-head-kind = kind
ranks-head-parameters = parameters
ranks-head-moved = elsewhere than uniform
ranks-kind-score = score
ranks-kind-gain = gain
ranks-kind-threshold = threshold
ranks-kind-mixed = mixed
ranks-how-best-sum = best sum
ranks-how-greedy = greedy
ranks-how-one-global-threshold = one global threshold
ranks-how-every-score-is-0-uniform = every score is 0: uniform
ranks-how-largest-remainder = largest remainder
