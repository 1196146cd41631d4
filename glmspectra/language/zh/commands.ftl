# `glmspectra inspect`、`convert`、`merge`、`squeeze`、`delta`、`init`、`chat`、`loop`；中断与进度。

inspect-summary = { $name }：{ $type }，{ $format }，{ $files }共 { $bytes }，{ $tensors } 个张量，{ $parameters } 个参数
inspect-no-type = 无 model_type
inspect-files = { $count } 个文件
inspect-cost = 对所选内容做 svd：{ $matrices }，读取 { $bytes }，float64 运算 { $flop }flop，最大的一个（{ $largest }）在 { $device } 上需内存 { $memory }。
inspect-with-parts = { $matrices }（连同部分共 { $spectra } 个谱）
inspect-cost-free = 对所选内容做 svd：{ $matrices }，读取 { $bytes }，float64 运算 { $flop }flop，最大的一个（{ $largest }）在 { $device } 上需内存 { $memory }，空闲 { $free }。
inspect-too-large = 这超过了空闲的内存：请换一个 --device，或用 --exclude 排除 { $largest }。
inspect-no-matrices = 非矩阵
inspect-head-matrix = 矩阵
inspect-head-layers = 层数
inspect-head-layer = 层
inspect-head-name = 名称
inspect-head-shape = 形状
inspect-head-dtype = 存储类型
inspect-head-count = 个数
inspect-head-bytes = 字节
inspect-head-flop = 浮点运算
inspect-head-file = 文件
inspect-scalar = 标量

checkpoint-beside = { $checkpoint }：读取 { $read }；目录中另有 { $count } 个权重文件未读取，如 { $name }。
checkpoint-left-out = { $checkpoint }：有 { $count } 个张量不测量，如 { $name }（{ $reason }）。
checkpoint-is-adapter = { $name } 是适配器：这里逐个测量其因子；`glmspectra delta` 给出它们合成的改变量的奇异值谱。

adapter-left-alone = target_modules 所指的模块中有 { $count } 个在适配器里没有因子（如 { $name }），保持基座原样。

adapter-other-models = { $adapter }：另外改变 { $models }，此基座中没有这些部分。
adapter-convolutions = { $adapter }：另外改变 { $count } 个卷积，只有不指定基座时才测量：{ $names }。

adapter-zero = { $path } 不改变任何权重：所有乘积 B A 均为零，与训练第一步之前相同。

convert-done = { $count } 个 safetensors 文件，共 { $size } GB，已写入 { $path } 并核对；另复制 { $copied } 个文件。
convert-done-resumed = { $count } 个 safetensors 文件，其中 { $kept } 个先前已完成，共 { $size } GB，已写入 { $path } 并核对；另复制 { $copied } 个文件。
convert-glm-tokenizer = tokenizer.json 在每段文本前加 [gMASK] sop，与模型训练时一致。
convert-own-tokenizer = 分词器不是 ChatGLM2 的，已原样复制：若 AutoTokenizer 不在文本前加 [gMASK] sop，请用 glmspectra.chatglm2.ChatGLMTokenizer 取得编号。

merge-done = { $method } 适配器（{ $matrices }）已并入 { $base }：适配器加在基座的原始权重上，而不是量化后的副本上。
merge-done-dequantized = { $method } 适配器（{ $matrices }）已并入 { $base }：基座以量化形式存储，先反量化，再加上适配器。
merge-written = 已写入 { $path }：{ $size } MiB，{ $dtype }，{ $files }。
merge-rounding = 舍入到 { $dtype } 至多损失一个矩阵改变量的 { $share }。
merge-rounding-of = 舍入到 { $dtype } 至多损失一个矩阵改变量的 { $share }（{ $name }）。
merge-checked = 已读回，并对每个改变了的层用 { $inputs } 个随机输入与基座加适配器核对：相差至多 { $apart }（均方根，相对）。
merge-whole = 按训练结果整体或部分替换了 { $count } 个张量。
merge-untied = { $names }：按训练结果不再共享权重；config.json 已写明。
merge-vocabulary = 词表现有 { $now } 项，基座为 { $before } 项。
merge-logits-moved = 已加载并比较：合并后的模型与基座加适配器的 logits 相差至多 { $apart }；适配器使基座的 logits 改变 { $moved }。
merge-logits = 已加载并比较：合并后的模型与基座加适配器的 logits 相差至多 { $apart }。

squeeze-kept = { $before } 个参数中的 { $parameters } 个保留了改变量能量的 { $energy }；相对误差 { $error }。
squeeze-ranks = { $matrices }的秩为 { $least } 至 { $rank }；部署时 max_lora_rank 须不小于 { $rank }。
squeeze-ranks-some = { $matrices }的秩为 { $least } 至 { $rank }，其中 { $gone } 个为 0；部署时 max_lora_rank 须不小于 { $rank }。
squeeze-better = 在我们的研究中，截断的适配器不如以同样开销训练的：每词元差 0.05 至 0.21 奈特，再训练 60 步后差 0.001 至 0.018（docs/ranks.md）：如有条件，请用 `suggest-rank` 的秩重新训练。
squeeze-adapter = 适配器：{ $path }

delta-layers = { $count } 层
delta-title = { $run }：{ $layers }的中位数
delta-title-step = { $run } 第 { $step } 步：{ $layers }的中位数
delta-measured = { $matrices }（{ $methods }），用时 { $seconds } 秒（{ $device }）。
delta-measured-states = { $matrices }，{ $states } 个状态（{ $methods }），用时 { $seconds } 秒（{ $device }）。
delta-outside = 有 { $count } 个训练过的矩阵不在所选之中：{ $names }；加 --matrices all 一并测量。
delta-nonfinite = 其中 { $count } 个在基座中或训练后含 NaN、无穷或超出 float32 范围的数：{ $names }
delta-similarity = 与另一适配器的相似度：余弦 { $least } 至 { $most }。
delta-cost = { $matrices }，{ $states } 个状态：读取 { $size }，最大分解 { $side } x { $side }；在 { $device } 上约需 { $time }。
delta-named-base = 基座取适配器所指的 { $path }。
delta-whole = { $path }：另含 { $count } 个完整张量，没有因子：{ $names }；给出基座即可测量其中的矩阵。
delta-more-rows = { $name }：基座有 { $rows } 行，{ $path } 有 { $more } 行（词元更多）：不测量。
delta-lacks = { $path }：缺少基座的 { $count } 个矩阵。
delta-further = { $path }：含有基座 { $base } 所没有的 { $count } 个矩阵，如 { $name }：不测量；基座是否正确？
delta-no-matrices = { $path }：另改变了 { $count } 个非矩阵的张量（偏置、归一化），没有奇异值谱：{ $names }。

init-wrote = 已写入 { $path }
init-same = { $count } 个文件原已存在
init-rates = 这些学习率适用于内置模型 nano；换成自己的模型时，把它的路径写入 model_path，数据的路径写入 dataset_path，并用 --find-lr 求学习率。
init-preset-qlora = 在 4 位基座上做 LoRA：以最少的显存得到好的回答。
init-preset-lora = 在原样基座上做 LoRA：权重精确，需要放得进内存。
init-preset-qlora-spectra = qlora，每个矩阵一个秩，按 nano 的奇异值谱分配。
init-preset-adalora = AdaLoRA：训练中秩移向重要之处。
init-preset-qlora-eight-gb = 在 8 GB 的 GPU 上训练 ChatGLM2-6B：每次一行，激活值重新计算。
init-preset-study = 原研究的设置，学习率也用其 2e-5，对 LoRA 偏低。

chat-who = { $model }。{ $help }
chat-who-adapter = { $model } 加 { $adapter }。{ $help }
chat-help = /clear 重新开始，/undo 撤回上一轮，/history 显示各轮，/exit 或 Ctrl-D 结束。
chat-no-rounds = 尚无对话。
chat-cleared = 新的对话。
chat-undone = 已撤回上一轮。
chat-nothing-to-undo = 没有可以撤回的一轮。
chat-stopped = （已中止；这个问题和回答不会保留）

loop-stage-svd = 基座的奇异值谱
loop-stage-suggest-from-base = 由基座定秩，供试训用
loop-stage-pilot = 试训
loop-stage-pilot-delta = 试训改变了什么
loop-stage-suggest = 由该改变定秩
loop-stage-train = 用这些秩训练
loop-stage-control = 用均匀秩训练（对照）
loop-stage-evaluate = 评估
loop-stage-final-delta = 训练改变了什么
loop-stage-report = 报告
loop-stage-finished = { $stage }：先前已完成
loop-scores = { $name }：损失 { $loss }，困惑度 { $perplexity }
loop-base = 基座
loop-suggested = 建议的秩
loop-uniform = 均匀秩

progress-measuring = 测量
progress-changes = 改变量
progress-process = 进程 0（共 { $count } 个）
progress-merging = 合并
progress-converting = 转换
progress-loss = 损失
progress-answers = 回答
progress-matrices = 个矩阵
progress-line = { $title }：{ $figures }
progress-of = { $done } / { $all } { $unit }
progress-left = 剩余 { $time }
progress-seconds = { $seconds } 秒
progress-minutes = { $minutes } 分 { $seconds } 秒
progress-hours = { $hours } 小时 { $minutes } 分
report-progress-page = 页面
report-progress-svg = SVG 文件

interrupted-goes-on = 已中断：完成的部分已保留；同一命令会从那里继续。
interrupted-checkpoint = 已中断：同一命令会从输出文件夹中的最后一个检查点继续；尚无检查点时重新开始。
interrupted-anew = 已中断：尚未写入任何内容；同一命令会重新开始。

# `glmspectra init --keys`：键的前后文；各键的含义是参考文字，与 JSON Schema 一样为英文。
keys-heading = { $file }：{ $group }
keys-required = 必填
keys-default = 默认 { $value }
keys-line = { $key }（{ $default }）：{ $meaning } 取值：{ $takes }
keys-others = transformers.TrainingArguments 的其他参数
keys-refused = { $keys }：拒绝。{ $why }
keys-no-effect = { $keys }：接受但无作用。{ $why }
keys-group-length = 运行长度与数据行
keys-group-rate = 学习率与优化器
keys-group-loss = 损失
keys-group-precision = 精度、内存与速度
keys-group-logs = 日志
keys-group-evaluation = 评估
keys-group-checkpoints = 检查点
keys-group-loading = 数据行的载入
keys-group-devices = 多设备
keys-group-scripts = 示例脚本与调试
keys-group-hubs = 模型站
keys-group-adalora = AdaLoRA（动态秩）
keys-group-ranks = 由谱定秩
keys-group-adapter = 适配器
keys-group-data = 数据
keys-group-model = 模型与精度
keys-group-run = 运行
