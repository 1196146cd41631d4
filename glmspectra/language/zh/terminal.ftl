# 各命令结束时的话。

terminal-medians = { $run }：各层的中位数
terminal-matrix = 矩阵
terminal-layers = 层数
terminal-matrices = { $count } 个矩阵
terminal-measured = { $matrices }，用时 { $seconds } 秒（{ $device }）。
terminal-measured-some = { $matrices }，其中 { $reused } 个先前已完成，用时 { $seconds } 秒（{ $device }）。
terminal-measured-none = { $matrices }，先前均已完成，用时 { $seconds } 秒（{ $device }）。
terminal-unreadable = 其中 { $count } 个无法读取，例如 { $name }：{ $reason }。
terminal-nonfinite = 其中 { $count } 个含 NaN、无穷或超出 float32 范围的数，没有奇异值谱：{ $names }
terminal-left-out = 先前所选的 { $matrices }仍在磁盘上，再次选中时会回到表中。
terminal-tables = 数据表：{ $path }
terminal-jsonl = JSONL：{ $path }
terminal-report = 报告：{ $path }
terminal-next = 下一步：{ $command }
terminal-drawing = 正在生成报告……
terminal-overview = { $path }（全部报告）
terminal-page-svg = { $path }（另有 { $count } 个 SVG 文件）
terminal-no-control = 没有训练均匀秩的对照，因此不谈建议的秩有何收益。
