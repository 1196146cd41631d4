# `glmspectra suggest-rank` 与候选准则的检验。

ranks-heading = 按 { $criterion } 得到的秩（{ $how }）：可训练参数 { $parameters } 个，float32 下 { $mebibytes } MiB，预算 { $budget } = { $asked }。
ranks-heading-unspent = 按 { $criterion } 得到的秩（{ $how }）：可训练参数 { $parameters } 个，float32 下 { $mebibytes } MiB，预算 { $budget } = { $asked }，其中 { $unspent } 未用。
ranks-of-matrix = { $matrix }：秩 { $least } 至 { $most }，平均 { $mean }
ranks-of-matrix-alike = { $matrix }：秩 { $least }
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
ranks-without-delta = 没有给出权重的改变。在我们研究的三个模型上，训练相同时，由试训的改变得到的秩都优于均匀秩；基座的有效秩在其中两个上试过，在一个上只得到其中六分之一到三分之二的收益，在另一个上没有收益。`--pilot 20` 会做一次试训，`--delta` 使用先前的训练。

ranks-study-far = 135M 模型，与其相去甚远的任务
ranks-study-same = ChatGLM2 结构的小模型，同一任务
ranks-study-near = 135M 模型，与其相近的任务
ranks-gain = { $least } 至 { $most }（{ $where }）
ranks-gain-unsure = { $least } 至 { $most }（{ $where }；并非每个预算都显著）
ranks-gains = 据我们的研究，三个预算下它比均匀秩的损失低（单位：奈特每词元）：{ $gains }。请如文件所写，使 alpha 与秩成正比：若全部使用同一个 alpha，第一项收益在 r 4 处消失，在 r 2 处减半。多训练比选秩收益更大：均匀秩若把三次试训的步数也用于训练，损失比由这些试训得到的秩还低 0.107（135M）和 0.065（ChatGLM2 结构）。学习率为最佳值的两倍或一半时，损失升高 0.002 至 0.16：请先调学习率，并训练同等开销的均匀秩作对照（`glmspectra loop` 会这样做）。
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
ranks-head-answer = 类型
ranks-head-parameters = 参数
ranks-head-moved = 与均匀秩位置不同
ranks-answer-score = 得分
ranks-answer-gain = 收益
ranks-answer-threshold = 阈值
ranks-answer-mixed = 混合
ranks-how-best-sum = 最大总和
ranks-how-greedy = 贪心
ranks-how-one-global-threshold = 统一的全局阈值
ranks-how-every-score-is-0-uniform = 得分全为 0：均匀
ranks-how-largest-remainder = 最大余数法

# `suggest-rank --list`：各准则做什么、出自何处。
ranks-criterion = { $name }（{ $answer }，取自 { $needs }）：{ $source }
ranks-criterion-control = { $name }（{ $answer }，对照）：{ $source }
criterion-uniform = 处处同一个秩：其他一切都须胜过的对照。原始 LoRA 的做法（Hu 等 2021）。
criterion-random = 随机的秩（选项：随机种子）：得分服从指数分布，份额在单纯形上均匀。任何不比它好的准则都没有发现什么。
criterion-energy-threshold = 占权重能量（σ² 之和）一定份额（选项，0.9）的方向数。通常的截断规则，如 PEFT 的 convert_to_lora 与 LoRD，这里当作权重自身的复杂度。
criterion-top-k-share = 原研究对 ChatGLM2-6B 的读法（ShayDuane/ChatGlm2-6B_LoRa）：最大 12 个奇异值在总和中的份额，原研究据此取 r = 12。份额越小，达到同样份额所需的方向越多：得分为份额的倒数。
criterion-effective-rank = σ 除以 σ 之和后熵的指数：Roy 与 Vetterli 2007《The effective rank》。按比例分配。不费任何训练，它在我们研究的一个模型上得到 delta-threshold 收益的六分之一到三分之二，在另一个上毫无收益。
criterion-stable-rank = ‖W‖_F² / ‖W‖₂²（Rudelson 与 Vershynin 2007）：SA-LoRA 定秩的先验。
criterion-spikes = 超出马尔琴科-帕斯图尔边界的奇异值：不是噪声的方向。Marchenko 与 Pastur 1967；何时显现见 Baik、Ben Arous 与 Péché 2005。我们最初的测量中不如均匀秩。
criterion-gavish-donoho = 噪声水平未知时超过最优硬阈值的奇异值个数（Gavish 与 Donoho 2014）。
criterion-alpha = 特征值尾部幂律的指数。Martin、Peng 与 Mahoney 2021 把大的 α 读作训练不足的层，给它更多（AlphaLoRA 亦然，Qing 等 2024）。也有人得出相反的结论。
criterion-quantisation = W − Q(W) 的 σ_i²：每多一个方向还给量化基座的能量。LoftQ 的看法（Li 等 2023），但秩在各矩阵间分配，而不是处处相同。
criterion-quantisation-rank = 恢复 W − Q(W) 能量一定份额（选项，0.5）所需的方向数，按比例分配。LoftQ 的看法（Li 等 2023）。存下的奇异值不够时，其后每个方向按最后一个的能量计，是秩的下界。
criterion-gradient = 几批数据上损失梯度的 σ_i²：方向 i 每步提供的一阶下降。LoRA-GA（Wang 等 2024）与 GaLore（Zhao 等 2024）的看法。我们最初的测量中不如均匀秩。
criterion-gradient-importance = 几批数据上 |W · dL/dW| 的均值：GoRA（He 等 2025）的重要性，按比例分配。
criterion-delta-threshold = 保留 ΔW 中 σ_i 超过同一个全局阈值的每个方向，阈值由预算决定。ΔW 来自试训的适配器或全量微调。本项目提出；在我们的研究中，两个模型、离所学较远的任务、三档预算下都好于均匀秩，在较近的任务上从不更差。多次试训逐值平均。
criterion-delta-fan = ΔW 的 σ_i 乘以 √(列数 / 行数)，同一个全局阈值。这是 muP 给更新的大小（Yang 等 2023），因为普通更新随行数的平方根增大。我们的研究没有证实。
criterion-delta-relative = ΔW 的 σ_i 除以基座权重的最大奇异值，同一个全局阈值。我们的研究没有证实。
criterion-delta-adamw = V^(1/4) ΔW V^(1/4) 的 σ_i，同一个全局阈值；V 为 AdamW 的二阶矩，取自 optimizer.pt。方向按 AdamW 作用于 W 本身时的权重计；V 视为可分，如 Adafactor（Shazeer 与 Stern 2018）。本项目提出，研究中名为 delta-preconditioned：在一个基座上远胜其他，在第二个上与 delta-threshold 相当，在第三个上不如它。
criterion-delta-tempered = 同 delta-adamw，但取 V 的八次方根，其在各矩阵中的均值截断在 10 与 90 % 分位数之间。本项目提出，以免少数梯度极大的矩阵独自决定。在研究证实它的那个基座上，介于 delta-threshold 与 delta-adamw 之间。
criterion-delta-energy = ΔW 的 σ_i²：方向 i 所保留的改变的能量（Eckart 与 Young 1936），是同样参数所能保留的最多能量。我们最初的测量中与 delta-threshold 接近；更偏向小矩阵。
criterion-delta-rank = 占 ΔW 能量一定份额（选项，0.9）的方向数，按比例分配。LoRA-Squeeze 与适配器审计（gradience 的 energy@0.90）称之为在用的秩。看不出改变有多大。
