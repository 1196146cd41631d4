# `glmspectra inspect`, `convert`, `merge`, `squeeze`, `delta`, `init`, `chat`, `loop`; what interrupts and how far a work is.

inspect-summary = { $name }: { $type }, { $format }, { $files } of { $bytes }, { $tensors } tensors, { $parameters } parameters
inspect-no-type = no model_type
inspect-files =
    { $count ->
        [one] 1 file
       *[other] { $count } files
    }
inspect-cost = svd over this selection: { $matrices }, { $bytes } to read, { $flop }flop in float64, { $memory } of memory on { $device } at the largest ({ $largest }).
inspect-with-parts = { $matrices } ({ $spectra } spectra with parts)
inspect-cost-free = svd over this selection: { $matrices }, { $bytes } to read, { $flop }flop in float64, { $memory } of memory on { $device } of { $free } free at the largest ({ $largest }).
inspect-too-large = That is more than is free: choose another --device, or leave { $largest } out with --exclude.
inspect-no-matrices = no matrices
inspect-head-matrix = matrix
inspect-head-layers = layers
inspect-head-layer = layer
inspect-head-name = name
inspect-head-shape = shape
inspect-head-dtype = stored as
inspect-head-count = count
inspect-head-bytes = bytes
inspect-head-flop = flop
inspect-head-file = file
inspect-scalar = scalar

checkpoint-beside =
    { $count ->
        [one] { $checkpoint }: { $name } lies beside { $read } and is not read.
       *[other] { $checkpoint }: { $count } other files of weights lie beside { $read } and are not read, { $name } for one.
    }
checkpoint-left-out =
    { $count ->
        [one] { $checkpoint }: 1 tensor is left out, { $name }: { $reason }.
       *[other] { $checkpoint }: { $count } tensors are left out, { $name } for one: { $reason }.
    }
checkpoint-is-adapter = { $name } is an adapter: its factors are measured one by one; `glmspectra delta` gives the spectra of the change that they make together.

adapter-left-alone =
    { $count ->
        [one] 1 module that target_modules names has no factors in the adapter, { $name }; it stays as in the base.
       *[other] { $count } modules that target_modules names have no factors in the adapter, { $name } for one; they stay as in the base.
    }

adapter-other-models = { $adapter }: also changes { $models }, of which this base has nothing.
adapter-convolutions =
    { $count ->
        [one] { $adapter }: also changes 1 convolution, which is measured only where no base is named: { $names }.
       *[other] { $adapter }: also changes { $count } convolutions, which are measured only where no base is named: { $names }.
    }

adapter-zero = { $path } changes no weight: all its products B A are zero, as before the first step of a training.

convert-done =
    { $count ->
        [one] 1 safetensors file, { $size } GB, written to { $path } and compared; { $copied } other files copied.
       *[other] { $count } safetensors files, { $size } GB, written to { $path } and compared; { $copied } other files copied.
    }
convert-done-resumed =
    { $count ->
        [one] 1 safetensors file, { $kept } of them from before, { $size } GB, written to { $path } and compared; { $copied } other files copied.
       *[other] { $count } safetensors files, { $kept } of them from before, { $size } GB, written to { $path } and compared; { $copied } other files copied.
    }
convert-glm-tokenizer = tokenizer.json puts [gMASK] sop before every text, as the model was trained to see.
convert-own-tokenizer = The tokenizer is not ChatGLM2's and was copied as it is: where AutoTokenizer puts no [gMASK] sop before a text, take its ids from glmspectra.chatglm2.ChatGLMTokenizer.

merge-done = { $method } adapter of { $matrices } merged into { $base }: the adapter was added to the base's original weights, not to a quantized copy.
merge-done-dequantized = { $method } adapter of { $matrices } merged into { $base }: the base was stored quantized and was dequantized first, then the adapter added.
merge-written = Written to { $path }: { $size } MiB of { $dtype } in { $files }.
merge-rounding = Rounding to { $dtype } took at most { $share } of a matrix's change.
merge-rounding-of = Rounding to { $dtype } took at most { $share } of a matrix's change ({ $name }).
merge-checked = Read back and held against base and adapter on { $inputs } random inputs of each changed layer: at most { $apart } apart (root mean square, relative).
merge-whole = Replaced as a whole or in part, as they were trained: { $count } tensors.
merge-untied = { $names }: no longer tied, as trained; config.json says so.
merge-vocabulary = The vocabulary has { $now } entries now, { $before } in the base.
merge-logits-moved = Loaded and compared: logits of merged model and of base with adapter at most { $apart } apart; the adapter moves those of the base by { $moved }.
merge-logits = Loaded and compared: logits of merged model and of base with adapter at most { $apart } apart.

squeeze-kept = { $parameters } of { $before } parameters keep { $energy } of the change's energy; relative error { $error }.
squeeze-ranks = Ranks { $least } to { $rank } of { $matrices }; serve with a max_lora_rank of { $rank } or more.
squeeze-ranks-some = Ranks { $least } to { $rank } of { $matrices }, { $gone } of them without any; serve with a max_lora_rank of { $rank } or more.
squeeze-better = In our study a cut adapter was worse than one trained at the same cost, by 0.05 to 0.21 nats a token, by 0.001 to 0.018 after 60 steps more (docs/ranks.md): where you can, train anew with ranks of `suggest-rank`.
squeeze-adapter = adapter: { $path }

delta-layers =
    { $count ->
        [one] 1 layer
       *[other] { $count } layers
    }
delta-title = { $run }: median over { $layers }
delta-title-step = { $run } at step { $step }: median over { $layers }
delta-measured = { $matrices } ({ $methods }), in { $seconds } s on { $device }.
delta-measured-states = { $matrices } in { $states } states ({ $methods }), in { $seconds } s on { $device }.
delta-outside =
    { $count ->
        [one] 1 matrix that was trained is not among those selected, { $names }; --matrices all measures it too.
       *[other] { $count } matrices that were trained are not among those selected, { $names }; --matrices all measures them too.
    }
delta-nonfinite =
    { $count ->
        [one] 1 of them holds NaN, infinity or numbers beyond float32, in the base or after training: { $names }
       *[other] { $count } of them hold NaN, infinity or numbers beyond float32, in the base or after training: { $names }
    }
delta-similarity = similarity with the other adapter: cosine { $least } to { $most }.
delta-cost =
    { $states ->
        [one] { $matrices }, 1 state: reads { $size } and decomposes up to { $side } x { $side }; about { $time } on { $device }.
       *[other] { $matrices }, { $states } states: reads { $size } and decomposes up to { $side } x { $side }; about { $time } on { $device }.
    }
delta-named-base = the base is { $path }, which the adapter names.
delta-whole = { $path }: also holds { $count } whole tensors, which have no factors: { $names }; name the base to measure those that are matrices.
delta-more-rows = { $name }: { $rows } rows in the base and { $more } in { $path }, which has more tokens: it is left out.
delta-lacks = { $path }: lacks { $count } of the base's matrices.
delta-further = { $path }: holds { $count } matrices that the base { $base } lacks, such as { $name }: they are left out; is it the right base?
delta-no-matrices = { $path }: also changes { $count } tensors that are no matrices (biases, norms) and have no spectrum: { $names }.

init-wrote = wrote { $path }
init-same = { $count } files stood there already
init-rates = The rates are for nano, the embedded model; for your own put its path into model_path and your data's into dataset_path, and ask --find-lr for the rate.
init-preset-qlora = LoRA on a base in 4 bits: the least memory for good answers.
init-preset-lora = LoRA on the base as it is: exact weights, where they fit into memory.
init-preset-qlora-spectra = qlora with a rank for each matrix, shared out by the spectra of nano.
init-preset-adalora = AdaLoRA: ranks that move to where they matter while training.
init-preset-qlora-eight-gb = ChatGLM2-6B on a GPU of 8 GB: one row at a time, activations computed again.
init-preset-study = The original study's settings, its learning rate of 2e-5 too, which is low for LoRA.

chat-who = { $model }. { $help }
chat-who-adapter = { $model } with { $adapter }. { $help }
chat-help = /clear begins anew, /undo takes the last round back, /history shows the rounds, /exit or Ctrl-D ends.
chat-no-rounds = there are no rounds yet.
chat-cleared = a new conversation.
chat-undone = the last round is taken back.
chat-nothing-to-undo = there is no round to take back.
chat-stopped = (stopped; the question and this answer are not kept)

loop-stage-svd = spectra of the base
loop-stage-suggest-from-base = ranks from the base, for the pilot
loop-stage-pilot = pilot
loop-stage-pilot-delta = what the pilot changed
loop-stage-suggest = ranks from that change
loop-stage-train = training with these ranks
loop-stage-control = training with uniform ranks
loop-stage-evaluate = evaluation
loop-stage-final-delta = what training changed
loop-stage-report = report
loop-stage-finished = { $stage }: finished before
loop-scores = { $name }: loss { $loss }, perplexity { $perplexity }
loop-base = base
loop-suggested = suggested
loop-uniform = uniform

progress-measuring = measuring
progress-changes = changes
progress-process = process 0 of { $count }
progress-merging = merging
progress-converting = converting
progress-loss = loss
progress-answers = answers
progress-matrices = matrices
progress-line = { $title }: { $figures }
progress-of = { $done } of { $all } { $unit }
progress-left = { $time } left
progress-seconds = { $seconds } s
progress-minutes = { $minutes } min { $seconds } s
progress-hours = { $hours } h { $minutes } min
report-progress-page = page
report-progress-svg = SVG files

interrupted-goes-on = interrupted: what was finished is kept; the same command goes on from there.
interrupted-checkpoint = interrupted: the same command goes on from the last checkpoint in its output folder; where there is none yet, it begins anew.
interrupted-anew = interrupted: nothing was written yet; the same command begins anew.

# `glmspectra init --keys`: what stands around the keys; their meanings are reference text, in English as in the schemas.
keys-heading = { $file }: { $group }
keys-required = required
keys-default = default { $value }
keys-line = { $key } ({ $default }): { $meaning } Takes { $takes }.
keys-others = Other arguments of transformers.TrainingArguments
keys-refused = { $keys }: refused. { $why }
keys-no-effect = { $keys }: accepted, without effect. { $why }
keys-group-length = Length of the run, and its rows
keys-group-rate = Learning rate and optimizer
keys-group-loss = Loss
keys-group-precision = Precision, memory and speed
keys-group-logs = Logs
keys-group-evaluation = Evaluation
keys-group-checkpoints = Checkpoints
keys-group-loading = Loading of rows
keys-group-devices = Several devices
keys-group-scripts = Example scripts and debugging
keys-group-hubs = Hubs
keys-group-adalora = AdaLoRA
keys-group-ranks = Ranks from spectra
keys-group-adapter = Adapter
keys-group-data = Data
keys-group-model = Model and precision
keys-group-run = Run
