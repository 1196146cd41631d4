# `glmspectra suggest-rank` 与候选准则的检验。

ranks-heading = 按 { $criterion } 得到的秩（{ $how }）：可训练参数 { $parameters } 个，float32 下 { $mebibytes } MiB，预算 { $budget } = { $asked }。
ranks-heading-unspent = 按 { $criterion } 得到的秩（{ $how }）：可训练参数 { $parameters } 个，float32 下 { $mebibytes } MiB，预算 { $budget } = { $asked }，其中 { $unspent } 未用。
ranks-of-matrix = { $matrix }：秩 { $least } 至 { $most }，平均 { $mean }
ranks-without = 有 { $count } 个矩阵的秩为 0：没有适配器，也不列入 target_modules。
ranks-serve = 部署时 max_lora_rank 须不小于 { $rank }（vLLM、TensorRT-LLM）。
ranks-at-cap = 有 { $count } 个矩阵已用尽表中已知的全部方向（如 { $first }）；秩更大的试训可能给它们更多。
ranks-greedy = 贪心解：与最优值 { $value } 至多相差 { $gap }。
ranks-uniform = 这就是均匀秩：在此预算下该准则不起作用，直接使用统一的 r 即可。
ranks-near-uniform = 只有 { $moved } 的参数与均匀秩的位置不同：预计没有差别，宜直接使用统一的 r。
ranks-moved = { $moved } 的参数与均匀秩的位置不同。
ranks-moved-energy = { $moved } 的参数与均匀秩的位置不同；同样开销下均匀秩占 ΔW 能量的 { $theirs }，这些秩占 { $own }。
ranks-all-agree = 各准则给出同样的秩：限制与预算没有留下选择。
ranks-disagree = 分歧最大的准则是 { $one } 与 { $two }（{ $most } 的参数），最小的是 { $three } 与 { $four }（{ $least }）；对 { $name }，各准则给出 { $low } 至 { $high }。
ranks-held = { $parameters } 个参数占 { $share }
ranks-budget-holds = 预算所能占有的 ΔW 能量：{ $pieces }。
ranks-between-pilots = { $count } 次试训之间有 { $moved } 的参数变动（最多 { $largest }），而建议本身与均匀秩相差 { $from }。
ranks-between-pilots-noise = { $count } 次试训之间有 { $moved } 的参数变动（最多 { $largest }），超过它与均匀秩之差：请增加试训次数或步数。
ranks-between-steps = 一次试训的 { $count } 个检查点之间有 { $moved } 的参数变动（最多 { $largest }），而建议本身与均匀秩相差 { $from }。
ranks-between-steps-noise = 一次试训的 { $count } 个检查点之间有 { $moved } 的参数变动（最多 { $largest }），超过它与均匀秩之差：请增加试训次数或步数。
ranks-without-delta = 没有给出权重的改变。在我们研究的两个模型上，由短试训的改变得到的秩都优于均匀秩；基座的有效秩在一个模型上只得到其中六分之一到三分之二的收益，在另一个上没有收益。`--pilot 80` 会做一次试训，`--delta` 使用先前的训练。

ranks-study-far = 135M 模型，与其相去甚远的任务
ranks-study-same = ChatGLM2 结构的小模型，同一任务
ranks-study-near = 135M 模型，与其相近的任务
ranks-gain = { $least } 至 { $most }（{ $where }）
ranks-gain-unsure = { $least } 至 { $most }（{ $where }；并非每个预算都显著）
ranks-gains = 据我们的研究，三个预算下它比均匀秩的损失低（单位：奈特每词元）：{ $gains }。请如文件所写，使 alpha 与秩成正比：若全部使用同一个 alpha，第一项收益即消失。学习率为最佳值的两倍或一半时，损失升高 0.002 至 0.16：请先调学习率，并训练同等开销的均匀秩作对照（`glmspectra loop` 会这样做）。
ranks-untested = 收益：该准则不在我们的研究所证实之列，因此尚不可知；请训练同等开销的均匀秩作对照（`glmspectra loop` 会这样做）。

ranks-menu = 候选准则的检验：把试训结果截断到各准则的秩，在 { $rows } 行留出数据上只做前向计算，损失为：{ $losses }。
ranks-menu-won = 检验结果：{ $criterion } 胜出，与均匀秩相差 { $gap }（按行 { $low } 至 { $high }）。除 { $steps } 步试训外用时 { $seconds } 秒。它只看试训需要什么，看不到完整训练的结果；后者由 `glmspectra loop` 的对照来看。
ranks-menu-uniform = 检验结果：均匀秩胜出。除 { $steps } 步试训外用时 { $seconds } 秒。它只看试训需要什么，看不到完整训练的结果；后者由 `glmspectra loop` 的对照来看。
ranks-menu-unsure = 检验结果：均匀秩胜出；{ $criterion } 的损失最低，但不能肯定低于均匀秩（{ $low } 至 { $high }）。除 { $steps } 步试训外用时 { $seconds } 秒。它只看试训需要什么，看不到完整训练的结果；后者由 `glmspectra loop` 的对照来看。

ranks-file = 秩：{ $path }（glmspectra train --ranks { $path }）
ranks-file-only = 秩：{ $path }
ranks-table = 数据表：{ $path }
ranks-export = 导出：{ $path }
ranks-title = 同一预算下的各准则
ranks-head-criterion = 准则
ranks-head-kind = 类型
ranks-head-parameters = 参数
ranks-head-moved = 与均匀秩位置不同
ranks-kind-score = 得分
ranks-kind-gain = 收益
ranks-kind-threshold = 阈值
ranks-kind-mixed = 混合
ranks-how-best-sum = 最大总和
ranks-how-greedy = 贪心
ranks-how-one-global-threshold = 统一的全局阈值
ranks-how-every-score-is-0-uniform = 得分全为 0：均匀
ranks-how-largest-remainder = 最大余数法
