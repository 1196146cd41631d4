# What stands out: a sentence for each rule (finding-), and why its threshold is where it is (rule-).

finding-nothing = Nothing stands out: none of { $count } rules found anything beyond its threshold.

finding-against-uniform = No difference from uniform ranks of the same cost can be seen: { $mean } nats a token, averaged over { $rows } rows (95 % interval { $low } to { $high }). This is one run; a claim about ranks takes several seeds.
finding-against-uniform-better = In this one run the suggested ranks did better than uniform ranks of the same cost: { $mean } nats a token, averaged over { $rows } rows (95 % interval { $low } to { $high }). A claim about ranks takes several seeds.
finding-against-uniform-worse = In this one run uniform ranks of the same cost did better than the suggested ones: { $mean } nats a token, averaged over { $rows } rows (95 % interval { $low } to { $high }). A claim about ranks takes several seeds.
finding-against-uniform-one = Suggested and uniform ranks of the same cost differ by { $mean } nats a token on the only row: one row has no interval, so nothing can be said.
rule-against-uniform = The sign of a difference is known where its 95 % interval leaves out 0.
finding-against-base = Tuning lowered the loss: { $mean } nats a token, averaged over { $rows } rows (95 % interval { $low } to { $high }).
finding-against-base-worse = Tuning raised the loss: { $mean } nats a token, averaged over { $rows } rows (95 % interval { $low } to { $high }).
finding-against-base-none = No difference between the tuned model and the base can be seen: { $mean } nats a token, averaged over { $rows } rows (95 % interval { $low } to { $high }).
finding-against-base-one = The tuned model and the base differ by { $mean } nats a token on the only row: one row has no interval, so nothing can be said.
rule-against-base = The sign of a difference is known where its 95 % interval leaves out 0.
finding-nonfinite =
    { $count ->
        [one] NaN, infinity or numbers beyond float32 in { $first }: it has no spectrum.
       *[other] NaN, infinity or numbers beyond float32 in { $count } matrices ({ $first } first): they have no spectrum.
    }
rule-nonfinite = A single entry that is no number spoils every product it enters.
finding-outlier = Layer { $layer } { $matrix }: { $measure } { $value }, median of its matrix type { $median }.
finding-outlier-also = Layer { $layer } { $matrix }: { $measure } { $value }, median of its matrix type { $median }; also out in { $others }.
rule-outlier = One row of normal noise in a thousand or fewer reaches it, for 6 to 80 layers (drawn 20,000 times); and the cell is 1.5 times away from the median. Half of the deviation is enough for a cell 4 times away.
finding-far-entries =
    { $count ->
        [one] Layer { $layer } { $matrix } has an entry { $value } standard deviations from zero: with one int4 scale nearly all of its other entries become 0.
       *[other] { $count } of { $all } matrices have entries more than 50 standard deviations from zero ({ $value } in layer { $layer } { $matrix }): with one int4 scale nearly all of their other entries become 0.
    }
rule-far-entries = int4 has 7 steps on a side: at 50 standard deviations half a step is 3.6 of them, and 99.9 % of normal entries round to 0.
finding-channels =
    { $count ->
        [one] Layer { $layer } { $matrix } has an output row { $value } times as long as the median one: an outlier channel.
       *[other] { $count } of { $all } matrices have an output row more than 5 times as long as the median one ({ $value } times in layer { $layer } { $matrix }): outlier channels.
    }
finding-channels-columns =
    { $count ->
        [one] Layer { $layer } { $matrix } has an input column { $value } times as long as the median one: an outlier channel.
       *[other] { $count } of { $all } matrices have an input column more than 5 times as long as the median one ({ $value } times in layer { $layer } { $matrix }): outlier channels.
    }
rule-channels = Norms of rows of independent entries differ by less than a factor of 1.6 from 64 entries on.
finding-poor-fits = { $share } of the power-law fits are not to be read (α above 6 or distance above 0.1): { $count } of { $all }.
rule-poor-fits = Above 6 a tail is hardly heavier than a random matrix's, above a distance of 0.1 the line does not describe it (Martin and Mahoney 2021); a fifth of such fits makes averages of α meaningless.
finding-like-noise =
    { $count ->
        [one] 1 of { $all } matrices shows no direction beyond the edge of noise: is it trained?
       *[other] { $count } of { $all } matrices show no direction beyond the edge of noise: is this checkpoint trained?
    }
rule-like-noise = Noise alone goes beyond the edge in one matrix of a hundred; trained weights nearly always do.
finding-lost-rank =
    { $count ->
        [one] Layer { $layer } { $matrix } has lost rank: condition number { $value }.
       *[other] { $count } of { $all } matrices have lost rank: condition number up to { $value } (layer { $layer } { $matrix }).
    }
rule-lost-rank = 1 / 1e7 is the precision of float32: beyond it the smallest direction drowns in the rounding of the largest.
finding-few-directions =
    { $count ->
        [one] Layer { $layer } { $matrix }: 12 directions hold { $value } of the energy.
       *[other] In { $count } of { $all } matrices 12 directions hold half of the energy or more ({ $value } in layer { $layer } { $matrix }).
    }
rule-few-directions = Of 120 equal directions, 12 would hold a tenth.
finding-trend = { $matrix }: { $measure } rises with depth, by a factor of { $factor } from the first third of the layers to the last.
finding-trend-falls = { $matrix }: { $measure } falls with depth, by a factor of { $factor } from the first third of the layers to the last.
rule-trend = A rank correlation of 0.85 over 8 layers comes by chance once in a hundred; a factor of 2 is seen at a glance.
finding-larger-than-weight =
    { $count ->
        [one] ΔW is larger than W in layer { $layer } { $matrix } ({ $most }): the learning rate is probably too high.
       *[other] ΔW is larger than W in { $count } of { $all } matrices (most: { $most } in layer { $layer } { $matrix }): the learning rate is probably too high.
    }
rule-larger-than-weight = Fine-tuning changes weights by a few percent; a change as large as the weight replaces it.
finding-outlying-change = ΔW of layer { $layer } { $matrix }: { $measure } { $value }, median of its matrix type { $median }.
finding-outlying-change-also = ΔW of layer { $layer } { $matrix }: { $measure } { $value }, median of its matrix type { $median }; also out in { $others }.
rule-outlying-change = As for the weights.
finding-unchanged =
    { $count ->
        [one] Layer { $layer } { $matrix } did not change at all.
       *[other] { $count } of { $all } matrices did not change at all (layer { $layer } { $matrix } first).
    }
rule-unchanged = A matrix with an adapter whose change is exactly 0 was never updated.
finding-short-of-rank =
    { $count ->
        [one] 1 of { $all } matrices of rank 2 or more uses every direction it was given: more rank could help.
       *[other] { $count } of { $all } matrices of rank 2 or more use every direction they were given: more rank could help.
    }
rule-short-of-rank = In use are the directions for 99 % of the energy; where half of all adapters need all of theirs, the limit is felt.
finding-idle-rank = { $share } of the rank that was allotted is idle: fewer directions hold 99 % of the energy of ΔW.
rule-idle-rank = A spectrum that falls evenly leaves a tenth to a quarter of its directions below 1 % of the energy.
finding-intruders =
    { $count ->
        [one] 1 of { $all } matrices has intruder dimensions ({ $most } of 10 in layer { $layer } { $matrix }): directions the base did not have, which go with forgetting.
       *[other] { $count } of { $all } matrices have intruder dimensions (most: { $most } of 10 in layer { $layer } { $matrix }): directions the base did not have, which go with forgetting.
    }
rule-intruders = Full fine-tuning makes nearly none (Shuttleworth et al. 2024).
finding-still-growing = ΔW grew by { $growth } between the last two checkpoints (steps { $from } to { $to }): training was not over.
rule-still-growing = A schedule that ends at rate 0 adds less than a tenth in its last interval.
finding-near-uniform = Only { $share } of the parameters stand elsewhere than with uniform ranks: expect no difference, and prefer a plain r.
rule-near-uniform = In our study no setting with less than a tenth moved differed from uniform ranks.
finding-far-from-uniform = { $share } of the parameters stand elsewhere than with uniform ranks (by { $criterion }): { $most } gets most ({ $plus } on average), { $least } least ({ $minus }).
finding-far-from-uniform-layers = { $share } of the parameters stand elsewhere than with uniform ranks (by { $criterion }), mostly by layer: layer { $most } gets most ({ $plus } on average), layer { $least } least ({ $minus }).
rule-far-from-uniform = Below a tenth the ranks are nearly uniform, which is said then.
finding-left-out =
    { $count ->
        [one] 1 of { $all } matrices gets rank 0 and no adapter ({ $types }).
       *[other] { $count } of { $all } matrices get rank 0 and no adapter ({ $types }).
    }
rule-left-out = A matrix without an adapter cannot change.
finding-criteria-disagree = The criteria disagree: on layer { $layer } { $matrix } { $low } gives { $least }, { $high } gives { $most }; the median difference is { $median } (controls left out).
rule-criteria-disagree = A spread of half the mean rank is more than rounding to whole ranks makes.
finding-nonfinite-loss = { $run }: the { $measure } became NaN or infinite at step { $step }. What was saved after it is probably spoiled: take an earlier checkpoint, and train with a lower learning rate or in bfloat16.
rule-nonfinite-loss = A single one reaches every weight that is trained. With float16 single steps overflow and are skipped, so gradients count where the last three logs in a row were not finite.
finding-overfitting = { $run }: evaluation loss was lowest at step { $step } ({ $best }) and ended { $rise } higher ({ $last }): keep that checkpoint.
rule-overfitting = Evaluation losses of one model on other rows differ by 1 to 2 %.
finding-still-falling = { $run }: evaluation loss was still falling at the end, by { $fall } over the last { $steps } steps.
rule-still-falling = 1 % an interval is more than what changing the rows does.
finding-gradient-spikes = { $run }: the gradient norm jumped to { $times } times its median at step { $step }.
rule-gradient-spikes = Gradient norms of one run stay within a factor of 3 after warm-up.
finding-divergence = { $run } diverged: training loss { $first } at the beginning, { $last } at the end.
rule-divergence = Batches differ by a few percent; a loss a tenth above its start has unlearned.
finding-rates-apart = The learning rates of { $high } ({ $peak }) and { $low } ({ $least }) are { $times } times apart: compare their losses with care.
rule-rates-apart = Within a factor of 3 a schedule's shape matters as much as its peak.
finding-best-run = { $first } reached the lowest evaluation loss: { $loss }, before { $second } with { $other }.
rule-best-run = Below 0.1 % the order is chance.
finding-wrong-perplexity = The log of { $runs } holds a perplexity that is not exp of its loss: it is computed anew here.
rule-wrong-perplexity = Perplexity is exp of the loss in nats; 1 % allows for rounding in the log.
finding-same-answers =
    { $same ->
        [one] Tuning left 1 of { $all } answers as it was.
       *[other] Tuning left { $same } of { $all } answers as they were.
    }
rule-same-answers = A training that taught something changes most answers.
finding-moved-measures = { $matrix }: { $measure } { $before } in { $one }, { $after } in { $two } (medians over the layers).
rule-moved-measures = Medians of the same matrix in checkpoints of one training differ by a few percent.
finding-alike = { $one } and { $two } agree: no median over the layers differs by more than { $most }.
rule-alike = Below 1 % no line can be distinguished from another.
finding-nothing-shared = { $one } and { $two } have no matrix name in common: only the medians of all matrices are compared.
rule-nothing-shared = Without a shared name there is no matrix to put beside the other.

finding-of-weights = This speaks of the weights W, not of the change.

# What is typical: said where little stands out.
finding-place = layer { $layer } { $matrix }
finding-model-losses = Loss in nats a token: { $models }.
finding-model-losses-rows =
    { $rows ->
        [one] Loss in nats a token, on 1 row: { $models }.
       *[other] Loss in nats a token, on { $rows } rows: { $models }.
    }
finding-model-scores = { $measure }: { $models }.
finding-answers =
    { $count ->
        [one] 1 question was answered.
       *[other] { $count } questions were answered.
    }
finding-answers-changed =
    { $count ->
        [one] Tuning changed 1 of { $all } answers.
       *[other] Tuning changed { $count } of { $all } answers.
    }
finding-change-size = Frobenius norm of ΔW over that of W: median { $median } of { $all } matrices, lowest { $low } ({ $least }), highest { $high } ({ $most }).
finding-change-size-alone = Frobenius norm of ΔW: median { $median } of { $all } matrices, lowest { $low } ({ $least }), highest { $high } ({ $most }).
finding-changed-most = { $most } changed most, by a median of { $high } of W; { $least } changed least, by { $low }.
finding-rank-in-use = { $used } of the { $allotted } directions allotted hold 99 % of the energy of ΔW.
finding-change-rank = Stable rank of ΔW: median { $median } of { $all } matrices, lowest { $low } ({ $least }), highest { $high } ({ $most }).
finding-rank-range = { $criterion } gives { $all } matrices ranks from { $low } to { $high }, median { $median }; { $most } gets most, { $mean } on average.
finding-rank-range-alike = { $criterion } gives { $all } matrices ranks from { $low } to { $high }, median { $median }.
finding-rank-cost = The ranks by { $criterion } cost { $parameters } trainable parameters.
finding-rank-cost-uniform = The ranks by { $criterion } cost { $parameters } trainable parameters, { $share } of the { $other } of uniform ranks.
finding-loss-course =
    { $count ->
        [one] { $run }: training loss { $first } at the beginning, { $last } after { $steps } steps.
       *[other] { $run }: training loss { $first } at the beginning, { $last } after { $steps } steps (means of { $count } logged values).
    }
finding-lowest-evaluation = { $run }: lowest evaluation loss { $loss } (perplexity { $perplexity }) at step { $step } of { $steps }.
finding-schedule = { $run }: { $steps } steps to epoch { $epochs }, learning rate up to { $peak }.
finding-gradient-size = { $run }: gradient norm { $median } (median), at most { $most } (step { $step }).
finding-speed = { $run }: { $tokens } tokens a second (median).
finding-stable-rank = Stable rank ({ $what }), out of { $directions } directions: median { $median } of { $all } matrices, lowest { $low } ({ $least }), highest { $high } ({ $most }).
finding-beyond-noise = Directions beyond the edge of noise ({ $what }), out of { $directions }: median { $median } of { $all } matrices, fewest { $low } ({ $least }), most { $high } ({ $most }).
finding-widest-type = { $most } spreads over most of its directions (median effective rank { $high } of them), { $least } over fewest ({ $low }).
finding-entry-size = Standard deviation of the entries ({ $what }): median { $median } of { $all } matrices, lowest { $low } ({ $least }), highest { $high } ({ $most }).
finding-tails = Excess kurtosis of the entries ({ $what }; 0 is normal): median { $median } of { $all } matrices; { $matrix } is farthest from normal, with a median of { $value }.
finding-tails-one = Excess kurtosis of the entries ({ $what }; 0 is normal): median { $median } of { $all } matrices.
finding-largest-entry = Largest entry, in standard deviations ({ $what }): median { $median } of { $all } matrices, lowest { $low } ({ $least }), highest { $high } ({ $most }).
finding-farthest-medians = Farthest apart are { $one } and { $two } in { $matrix }: { $measure } { $before } and { $after } (medians over the layers).
finding-medians-by-run = { $measure }, median of all matrices: { $runs }.
