# What commands say at their end.

terminal-medians = { $run }: medians over the layers
terminal-matrix = matrix
terminal-layers = layers
terminal-matrices =
    { $count ->
        [one] { $count } matrix
       *[other] { $count } matrices
    }
terminal-measured = { $matrices }, in { $seconds } s on { $device }.
terminal-measured-some = { $matrices }, { $reused } of them finished before, in { $seconds } s on { $device }.
terminal-measured-none = { $matrices }, finished before, in { $seconds } s on { $device }.
terminal-unreadable =
    { $count ->
        [one] 1 of them cannot be read, { $name }: { $reason }.
       *[other] { $count } of them cannot be read, such as { $name }: { $reason }.
    }
terminal-nonfinite =
    { $count ->
        [one] 1 of them holds NaN, infinity or numbers beyond float32, and has no spectrum: { $names }
       *[other] { $count } of them hold NaN, infinity or numbers beyond float32, and have no spectrum: { $names }
    }
terminal-left-out = { $matrices } of earlier selections kept on disk, and back in the tables once asked for.
terminal-tables = tables: { $path }
terminal-jsonl = jsonl:  { $path }
terminal-report = report: { $path }
terminal-next = next: { $command }
terminal-drawing = drawing the report ...
terminal-overview = { $path } (all of them)
terminal-page-svg =
    { $count ->
        [one] { $path } (and 1 SVG file)
       *[other] { $path } (and { $count } SVG files)
    }
terminal-no-control = No control with uniform ranks was trained, so nothing is said about what the suggested ranks gained.
