# `glmspectra train`, `evaluate` and `infer`: settings, data, memory, training, evaluation.

settings-renamed = { $source }: { $old } is taken as { $new }.
settings-grouped = { $source }: group_by_length is taken as train_sampling_strategy "{ $strategy }".
settings-warmup-aside = { $source }: warmup_ratio is set aside, since warmup_steps is given.
settings-warmup = { $source }: warmup_ratio is taken as warmup_steps, below 1 a share of all steps.
settings-adafactor = { $source }: adafactor is taken as optim adafactor.
settings-adafactor-off = { $source }: adafactor is taken as optim, which stays as it is.
settings-optimizer = { $source }: optim "{ $old }" is gone from transformers and is taken as "{ $new }".
settings-gives-way = { $source }: { $key } is set aside, since { $other } is given.
settings-rate-of-nano = { $source }: learning_rate { $rate } is what the embedded model learns at, and far too high for most others: `glmspectra train --find-lr` says which fits.
settings-aside = { $source }: { $key } is set aside: { $why }.
settings-long = { $beginning }... ({ $count } entries)
settings-idle = { $source }: { $key } has no effect here. { $why }.

data-rows =
    { $count ->
        [one] 1 row
       *[other] { $count } rows
    }
data-file = { $file }: { $rows } of { $format }
data-file-row-formats = { $file }: { $rows }: { $formats }
data-row-format = { $rows } of { $format }
data-row-format-unknown = no format that is known
data-and = { $names } and { $last }
data-unread = { $file }: columns that are not read: { $names }
data-unanswered =
    { $count ->
        [one] { $file }: 1 conversation without an answer at the end; what follows the last answer is left out
       *[other] { $file }: { $count } conversations without an answer at the end; what follows the last answer is left out
    }
data-unasked =
    { $count ->
        [one] { $file }: 1 row with an empty question, which is learnt as it is
       *[other] { $file }: { $count } rows with an empty question, which are learnt as they are
    }
data-no-name = (no name)
data-silent =
    { $count ->
        [one] { $file }: 1 answer read and not learnt, as weight, loss or train says
       *[other] { $file }: { $count } answers read and not learnt, as weight, loss or train says
    }
data-how-list = the list under { $name }
data-how-delimiter = fields separated by { $mark }
data-how-tab = tab
data-how-unpacked = unpacked by { $tool }
data-how-encoding = read as { $encoding }
data-split = { $name }: { $rows } rows, { $tokens } tokens ({ $learnt } learnt), longest { $longest }
data-split-packed = { $name }: { $rows } rows, { $tokens } tokens ({ $learnt } learnt), longest { $longest }; packed into { $packed } rows of { $length }, { $full } full
data-long = { $name }: longer than max_length { $length } (on_long { $rule }): { $contexts } lost the start of their context, { $targets } the end of their target (their eos is not learnt), { $dropped } were left out; { $tokens } tokens cut
data-last-answer = { $name }: of { $count } conversations only the last answer is learnt, since the chat template rewrites earlier turns
data-bad =
    { $count ->
        [one] 1 row cannot be used ({ $causes })
       *[other] { $count } rows cannot be used ({ $causes })
    }
data-bad-left-out = left out: { $bad }
data-bad-more = ... and { $count } more
data-duplicates = train: { $count } rows say what an earlier row says, and are learnt again
data-shared = { $count } rows of valid have a context that train has too, with another target
data-fraction-aside = valid_fraction is set aside, since the data comes with a valid part.
data-weighted = { $path }: weight { $weight } makes { $kept } of { $all } rows.
data-kept-apart = { $kept } of { $all } rows are kept for evaluation (valid_fraction { $fraction }).
data-shorter = max_length { $wanted } comes down to { $limit }, the positions that the model has.
data-no-system = the chat template has no place for a system text, which stands before the first question.

training-moved = the earlier run is now { $path }.
training-damaged = { $path } is damaged: { $damage }; the one before it is taken.
damage-sums-unreadable = its { $file } cannot be read
damage-sums-other = its { $file } is not what was written
damage-file-missing = { $file } is missing or cannot be read
damage-file-other = { $file } is not what { $sums } says
training-goes-on = the run goes on from { $path }.
training-begins = { $path } holds no checkpoint yet: the run begins anew.
training-differs = differs from when the run began: { $what }.
training-unknown-origin = { $path } holds a run that says not what it was trained on ({ $file } is not there).
training-all-logits = the output layer does not have the last word on the logits, so the loss is taken from all of them.
training-progress = training
training-steps = steps
training-loss = loss { $loss }
training-speed = { $speed } tokens/s
training-ranks = ranks { $sum }
training-evaluated = step { $step }: evaluation loss { $loss } nats a token, perplexity { $perplexity }, token accuracy { $accuracy }
training-done = { $method }: { $steps } steps, training loss { $loss }
training-done-evaluated = { $method }: { $steps } steps, training loss { $loss }, evaluation loss { $evaluation } (perplexity { $perplexity })
training-best = best checkpoint: step { $step }, evaluation loss { $loss }
training-adapter = adapter of { $parameters } parameters: { $path }
training-finished-before = { $path } holds this run, finished before; --overwrite moves it aside and begins anew.
training-curves = curves: { $path }

rate-heading = loss on { $rows } after { $steps } steps; { $loss } at the start
rate-judged-valid = rows not trained on
rate-judged-train = training rows
rate-diverged = diverged
rate-lowest = <- lowest
rate-higher = the lowest loss is that of the highest rate tried; a higher one may learn faster still
rate-advised = advised: --set train.learning_rate={ $rate }

dry-trainable = trainable parameters: { $count }
dry-on-gpu = (as on a GPU in this precision; this run is on a CPU)
dry-fits = { $share } of the { $size } GiB of { $device }
dry-too-large = more than the { $size } GiB of { $device }: set gradient_checkpointing, lower per_device_train_batch_size (and raise gradient_accumulation_steps), or lower max_length
dry-steps = steps: { $steps }, each of { $rows } rows; one pass over the data is { $tokens } tokens
dry-examples = examples by template { $template } (learnt: ⟦ ⟧):
dry-example = { $tokens } tokens, { $learnt } learnt: { $text }
dry-longest = longest batch, { $rows } x { $tokens } tokens, forward and backward: loss { $loss }, { $seconds } s
dry-longest-measured = longest batch, { $rows } x { $tokens } tokens, forward and backward: loss { $loss }, { $seconds } s, peak memory { $peak } GiB ({ $apart } estimated)
memory-heading = estimated peak memory of a step of { $rows } x { $tokens } tokens: { $peak } GiB (CUDA context not counted)
memory-4-bit-weights = 4-bit weights
memory-scales-of-4-bit-blocks = scales of 4-bit blocks
memory-other-base-weights = other base weights
memory-adapter = adapter
memory-gradients = gradients
memory-optimizer-state = optimizer state
memory-cublas-workspaces = cuBLAS workspaces
memory-gradients-of-activations-recomputation = gradients of activations, recomputation
memory-logits-and-loss = logits and loss
memory-dequantized-weight = dequantized weight
memory-activations = activations
memory-passing-activations = passing activations

evaluation-rows = { $rows } rows of { $split }
evaluation-four-bit = The linear layers of the base are rounded to 4 bits ({ $type }), as the settings say. A merged model is rounded anew, so its loss differs from the adapter's; --set load_in_4bit=false takes the weights as they are stored.
evaluation-base = base
evaluation-tuned = with adapter
evaluation-scores = { $name }: loss { $loss } nats a token (mean over { $tokens } tokens), perplexity { $perplexity }, token accuracy { $accuracy }
evaluation-text-scores = { $scores }; ROUGE-L { $rouge }, BLEU { $bleu } by character
evaluation-difference = with adapter minus without, row by row: { $mean } nats a token (mean over { $rows } rows, each counting alike; 95 % interval { $low } to { $high })
evaluation-difference-one = with adapter minus without: { $mean } nats a token, on one row, which has no interval
evaluation-same = every row has exactly the same loss with the adapter and without: it changes nothing here
evaluation-written = written to { $path }
evaluation-sample = { $name }: { $said }
evaluation-sample-context = context
evaluation-sample-reference = reference
evaluation-sample-base = base
evaluation-sample-tuned = tuned
evaluation-answers = { $count } answers written to { $path }, column { $column }
