"""Vocabulary of the rendered text: everyday English words and Chinese words, plain data."""

_ENGLISH = """
about account address after again airport album amount animal answer apple arrival article artist August autumn
balance banana basket battery beach before berlin bicycle blanket bottle bread bridge bright broken brother budget
builder button cabinet camera candle captain carbon careful castle center chair change charge cheese children church
circle clear client clock cloud coffee colour common company computer contact copper corner cotton country couple
crystal current customer damage daughter decide defence delivery desert detail device dinner direction discount doctor
dollar double dragon drawing driver during earth eastern economy editor eight electric eleven email empty energy
engine English enough entrance equal evening example exit expert express fabric factory family farmer father feather
February festival figure filter finger finish flight flower follow forest forward fourth freedom Friday friend future
galaxy garden general gentle ginger glass golden grammar great green ground guitar hammer happy harbour health heavy
height history holiday honest horizon hospital hotel hundred iceland imagine income index industry inside invoice
island jacket January journal journey jungle justice keyboard kitchen knife know ladder language laptop large later
laugh leader leather lemon letter level library light limited liquid little local London lunch machine magnet manager
market master matter meadow medical member memory message metal middle minute mirror modern Monday money monitor
morning mother mountain museum music narrow nation nature needle network never night normal north notebook November
number object ocean October office often olive onion open orange order other output oxygen package palace paper parcel
parent parking passport patient payment pencil people pepper perfect phone picture pillow planet plastic platform
please pocket police popular potato powder present price printer private problem product profile project public purple
quality quarter queen question quick quiet rabbit radio railway random reading receipt record refund region report
request result return ribbon river rocket round royal rubber safety sample Saturday school science screen season
second secret section senior sentence service seven shadow sheet shop short shoulder signal silver simple sister
sixteen small smooth snow social soldier south spare special spring square stable station steel storm story straight
street strong student subject sugar summer Sunday supply surface sweet switch system table target teacher temple
thirty thousand through thunder Thursday ticket tiger timber tomato tomorrow total tourist tower traffic train travel
triangle Tuesday twelve umbrella under uniform unique update valley value velvet version video village violet visitor
volume voyage waiting warning water weather Wednesday weekend western whisper white window winter wisdom wonder wooden
world yellow yesterday young zebra zero
"""

_CHINESE = """
北京 上海 广州 深圳 杭州 中国 公司 银行 医院 学校 大学 图书馆 火车站 机场 地铁 公园
超市 商店 酒店 餐厅 厨房 办公室 电话 地址 姓名 日期 时间 价格 数量 合计 金额 发票
收据 订单 编号 客户 产品 服务 质量 保证 安全 注意 出口 入口 电梯 禁止 吸烟 欢迎
光临 谢谢 你好 再见 早上 中午 晚上 今天 明天 昨天 星期 春天 夏天 秋天 冬天 天气
晴天 下雨 温度 湿度 风力 苹果 香蕉 牛奶 面包 鸡蛋 米饭 面条 茶叶 咖啡 红色 黄色
蓝色 绿色 黑色 白色 老师 学生 医生 工程师 经理 朋友 家庭 孩子 父母 电脑 手机 键盘
网络 软件 数据 系统 程序 文件 打印 保存 删除 下载 更新 账户 密码 登录 注册 新闻
体育 音乐 电影 历史 科学 技术 经济 文化 教育 健康 旅游 交通 环境 能源 城市 农村
道路 桥梁 河流 高山 大海 森林 动物 植物 世界 国家 人民 生活 工作 学习 发展
"""

ENGLISH, CHINESE = _ENGLISH.split(), _CHINESE.split()
