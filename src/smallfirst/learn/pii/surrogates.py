"""What stands in for what was found: of the same kind and form, the same within an episode, unrelated across episodes.

A surrogate is a function of (episode key, value), so nothing needs to be remembered and every record of an episode
agrees. Names, places, organisations and addresses are replaced token by token, whatever stands around: "John" alone and
the "John" of "John Smith" or of john.smith@... get the same word. Words that identify nobody (Street, Ltd, von) stay.
"""

from __future__ import annotations

import hmac
import ipaddress
import random
import re
import string
from collections.abc import Callable

from phonenumbers import COUNTRY_CODE_TO_REGION_CODE
from stdnum import luhn
from stdnum.iso7064 import mod_11_2, mod_97_10

from smallfirst.learn.pii.patterns import digits, national

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
TOKEN = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")
"""What is replaced or stays as one: a Chinese character, a run of other letters and digits."""
_RUN = re.compile(rf"[{CJK}]|[^\W\d_{CJK}]+|\d+")

_KEPT = frozenset(
    """mr mrs ms miss dr prof sir herr frau mme sr sra jr the and for of in at de der den des del della di da
dos du la le les los van von zu y und et al bin ter ten st saint inc incorporated ltd limited llc llp
plc gmbh ag kg co corp corporation company group holding holdings sa sas sarl srl spa bv nv ab oy oyj
kft sl ltda pvt pte bank university hospital school college institute clinic hotel church museum library
airport station center centre international national technologies technology solutions systems services
partners consulting industries associates foundation agency studio studios labs software media energy
logistics capital insurance sons street road rd avenue ave boulevard blvd lane ln drive court ct place
pl square sq terrace way highway hwy parkway pkwy circle crescent close row walk apt apartment suite ste
unit floor flat room building bldg block house box po p o north south east west northern southern
eastern western upper lower new old restaurant restaurants bar cafe café bistro brasserie grill kitchen diner
pizza pizzeria sushi cuisine food ristorante trattoria steakhouse bakery coffee tea wine beer lounge pub inn
motel hostel resort salon shop store market mall theater theatre cinema stadium arena
straße strasse str weg platz allee gasse ring rue chemin avenida
calle plaza paseo via viale piazza corso rua travessa straat laan gade vej gatan gata ulica ul city town
county state province district region republic island islands lake river mount port fort""".split()
)
"""Words of names and addresses that identify nobody, in lower case."""
_ORDINAL = re.compile(r"\d{1,3}(?:st|nd|rd|th)", re.IGNORECASE)
_DAY = re.compile(
    r"(?=.*\d)(?=.*[a-z])(?:\d{1,4}(?:st|nd|rd|th)?|jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?"
    r"|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?|(?:mon|tues|wednes|thurs|fri|satur|sun)day"
    r"|of|the|on|[\W_])++",
    re.IGNORECASE,
)
"""A day as it is said ("8th of March", "Monday the 3rd"), which a tagger may take for an address ("8th Street")."""
_KEPT_CJK = re.compile(
    "有限责任公司|股份有限公司|有限公司|公司|集团|科技|技术|信息|网络|传媒|"
    "银行|大学|医院|中学|小学|学校|研究院|酒店|先生|女士|小姐|老师|医生|"
    "经理|自治区|自治州|省|市|区|县|镇|乡|村|街道|大街|大道|路|街|巷|"
    "弄|号楼|号|栋|幢|座|单元|室|楼|层|小区|花园|广场|大厦"
)
_ROLES = frozenset(
    """admin billing contact customer feedback hello help info mail no noreply office reply sales service
support team""".split()
)
_ONSETS = """Al An Ar Bel Ber Bran Cal Car Cor Dal Dar Del Dor El Em Er Fal Far Gar Gil Hal Har Hel Hol Il Jar Jor
Kal Kar Kel Lan Lar Len Lin Lor Mal Mar Mel Mil Mon Nar Nel Nor Or Os Pel Per Ral Ren Ril Ros Sal San
Sel Sol Tal Tar Tel Tor Ul Val Var Vel Vin Wal War Wel Wil Yar Zel""".split()
_MIDDLES = (
    """ba be da de di do ga ka ke ki la le li lo ma me mi na ne ni no ra re ri ro sa se ta te ti va ve vi""".split()
)
_ENDS = """bert bin by cott da den der dine don dra fer ford gan gren ham ker kin la land lan leigh ley lin lo lyn
man mer mond na ner nia nor ra ran rick rin ris ro ry sen shaw son sted ta tan ter than ton va vale vin
well wick win""".split()
_SURNAMES = (
    "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许何吕施张孔曹严华金魏陶姜戚谢邹喻柏水窦章云苏潘葛奚范彭郎鲁韦"
    "昌马苗凤花方俞任袁柳唐罗薛伍余米贝姚孟顾尹江郭梅盛林钟徐邱骆高夏蔡田樊胡凌霍虞万支柯管卢莫房丁邓洪包"
    "诸左石崔吉龚程邢裴陆荣翁荀羊惠曲封段侯宁仇栾甘武刘景束龙叶司黎薄白蒲从索赖卓屠池乔阴能苍闻莘党翟谭贡"
    "劳姬申扶堵冉宰雍桑桂牛寿通边燕尚农温庄晏柴瞿阎连茹习艾鱼容古易慎戈廖庾"
)
_GIVEN = (
    "安柏彬波博昌超辰晨成诚川春达丹德东栋恩帆凡芳菲峰刚歌光海涵航昊浩禾和恒宏虹华慧佳嘉建健杰洁瑾锦静军俊"
    "凯康可兰岚磊黎力立丽莲良亮琳玲凌龙璐露曼美萌梦敏明铭楠宁佩鹏萍琦琪启谦倩强巧勤晴庆秋然仁蓉荣容睿瑞润"
    "珊尚诗石书舒淑树爽顺思松涛天田婷庭彤薇维伟文雯武希曦霞先贤翔晓欣新馨鑫星兴雄秀旭轩雪雅妍岩艳阳瑶怡依"
    "毅逸英瑛颖永勇友宇雨玉钰渊媛月云悦泽哲珍真振正志智中舟竹卓子紫"
)
_ALPHABETS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)


class Surrogates:
    """The surrogates of one episode; `key` is at least 16 secret bytes that no other episode has."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._words: dict[str, str] = {}

    def __call__(self, kind: str, text: str) -> str:
        """What stands in for `text`: never equal to it where it holds a letter or digit that identifies."""
        if kind == "EMAIL":
            return self._email(text)
        form = {"PHONE": self._phone, "CARD": self._card, "IBAN": self._iban, "CN_IDENTITY": self._cn_identity}
        form |= {"SSN": self._ssn, "IP": self._ip, "SECRET": self._secret}
        return form[kind](text) if kind in form else self.words(text)

    def words(self, text: str) -> str:
        """Every identifying token of `text` replaced; separators, generic words and letter case stay."""
        marks = iter(identifying(text))
        return TOKEN.sub(lambda match: self.token(match.group()) if next(marks) else match.group(), text)

    def token(self, token: str) -> str:
        """What stands in for one token, wherever it stands: letters for letters, a number for a number."""
        return _RUN.sub(lambda match: self._run(match.group()), token)

    def _random(self, kind: str, value: str) -> random.Random:
        data = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
        return random.Random(hmac.digest(self._key, data, "sha256"))

    def _run(self, run: str) -> str:
        if run[0].isdecimal():
            return self._number(run)
        return self._character(run) if re.match(f"[{CJK}]", run) else self.word(run)

    def word(self, word: str) -> str:
        """The invented word for a word, in its letter case; one or two letters become as many letters."""
        lower = word.casefold()
        if lower not in self._words:
            rng = self._random("word", lower)
            self._words[lower] = _different(lower, lambda: _invented(rng, len(lower)))
        invented = self._words[lower]
        if word.isupper():
            return invented.upper()
        return invented if word.islower() else invented.capitalize()

    def _number(self, number: str) -> str:
        rng = self._random("number", number)
        return _different(number, lambda: _digits_like(number, rng))

    def _character(self, character: str) -> str:
        """A surname becomes a surname."""
        rng = self._random("character", character)
        return _different(character, lambda: rng.choice(_SURNAMES if character in _SURNAMES else _GIVEN))

    def _email(self, text: str) -> str:
        local, _, domain = text.rpartition("@")
        parts = re.compile(r"[A-Z]?[a-z\u00c0-\u024f]+|[A-Z\u00c0-\u024f]+(?![a-z])|\d+")
        name = parts.sub(lambda match: self._local_part(match.group()), local)
        *labels, _top = domain.split(".")
        label = next((label for label in reversed(labels) if len(label) > 3), labels[-1])
        return f"{name}@{_RUN.sub(lambda match: self.word(match.group()), label)}.example"

    def _local_part(self, part: str) -> str:
        return part if part.casefold() in _ROLES else self._number(part) if part[0].isdecimal() else self.word(part)

    def _phone(self, text: str) -> str:
        """The subscriber's digits replaced in place; a valid number stays valid, prefixes and grouping stay."""
        known = national(text)
        number, *extension = re.split(r"(?i)(\s?(?:x|ext).*)", text)
        written = digits(number)
        own = str(known.national_number) if known and written.endswith(str(known.national_number)) else written
        own = _without_country(own) if not known and text.startswith(("+", "00")) else own
        rng = self._random("phone", own)

        def candidate() -> str:
            kept = 3 if own[:1] == "1" and len(own) == 11 else 1
            return _fill(number, own[:kept] + _digits_like(own[kept:], rng, leading=True)) + "".join(extension)

        def alike(made: str) -> bool:
            other = national(made)
            return not known or (other is not None and other.country_code == known.country_code)

        return _different(text, candidate, alike)

    def _card(self, text: str) -> str:
        number = digits(text)
        rng = self._random("card", number)

        def candidate() -> str:
            body = number[:2] + _digits_like(number[2:-1], rng, leading=True)
            return _fill(text, body + luhn.calc_check_digit(body))

        return _different(text, candidate)

    def _iban(self, text: str) -> str:
        compact = re.sub(r"[ -]", "", text)
        rng = self._random("iban", compact.upper())

        def candidate() -> str:
            account = "".join(_same_class(c, rng) for c in compact[4:])
            country = compact[:2]
            check = mod_97_10.calc_check_digits((account + country).upper())
            return _lay(text, country + check + account)

        return _different(text, candidate)

    def _cn_identity(self, text: str) -> str:
        """Region and birthday replaced too: the year within the decade, day and month anew."""
        rng = self._random("cn", text.upper())

        def candidate() -> str:
            birthday = f"{text[6:9]}{rng.randrange(10)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
            body = _digits_like(text[:6], rng) + birthday + _digits_like(text[14:17], rng, leading=True)
            return body + mod_11_2.calc_check_digit(body)

        return _different(text.upper(), candidate)

    def _ssn(self, text: str) -> str:
        number = digits(text)
        rng = self._random("ssn", number)
        areas = [area for area in range(1, 900) if area != 666]

        def candidate() -> str:
            return _fill(text, f"{rng.choice(areas):03}{rng.randint(1, 99):02}{rng.randint(1, 9999):04}")

        return _different(text, candidate)

    def _ip(self, text: str) -> str:
        """An address of a block that is set aside for tests (RFC 2544, RFC 3849); private ones stay private."""
        address = ipaddress.ip_address(text)
        rng = self._random("ip", str(int(address)))
        if address.version == 6:
            base, free = "2001:db8::", 32 if "::" in text else 96
        else:
            base, free = ("10.0.0.0", 24) if address.is_private else ("198.18.0.0", 17)
        return _different(text, lambda: str(ipaddress.ip_address(base) + rng.randrange(1, 2**free - 1)))

    def _secret(self, text: str) -> str:
        """Character classes stay, and the published prefix of a token (sk-, ghp_, eyJ)."""
        prefix = re.match(r"(?:[A-Za-z]{2,10}(?:_[a-z]{2,4}_|[-_])(?:ant-|proj-)?|AKIA|ASIA|AIza|eyJ|SG\.)", text)
        kept = prefix.group() if prefix and len(text) - prefix.end() >= 12 else ""
        rng = self._random("secret", text)
        return _different(text, lambda: kept + "".join(_same_class(c, rng) for c in text[len(kept) :]))


def identifying(text: str) -> bytes:
    """For each token of a name, place, organisation or address, 1 if it identifies and 0 if it is a generic word. No
    token of a day does."""
    if _DAY.fullmatch(text):
        return bytes(len(TOKEN.findall(text)))
    generic = {at for match in _KEPT_CJK.finditer(text) for at in range(*match.span())}
    return bytes(
        match.start() not in generic and match.group().casefold() not in _KEPT for match in TOKEN.finditer(text)
    )


def ordinal(token: str) -> bool:
    """Whether the token is a number in a row (5th): in an address it may name a street, alone it is a day."""
    return _ORDINAL.fullmatch(token) is not None


def _different(original: str, make: Callable[[], str], good: Callable[[str], bool] = lambda _: True) -> str:
    """The first of 100 candidates that is good and not the original, else the last."""
    made = original
    for _ in range(100):
        made = make()
        if made != original and good(made):
            break
    return made


def _invented(rng: random.Random, length: int) -> str:
    """A pronounceable word of about `length` letters, in lower case."""
    if length < 3:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(length))
    middle = rng.choice(_MIDDLES) if length > 4 else ""
    return (rng.choice(_ONSETS) + middle + rng.choice(_ENDS)).lower()


def _same_class(character: str, rng: random.Random) -> str:
    """A digit for a digit, a letter for a letter of its case; anything else stays."""
    for alphabet in _ALPHABETS:
        if character in alphabet:
            return rng.choice(alphabet)
    return rng.choice(_GIVEN) if character.isalpha() else character


def _digits_like(number: str, rng: random.Random, *, leading: bool = False) -> str:
    """As many digits; a first digit other than 0 stays other than 0 unless `leading` zeros are welcome."""
    made = "".join(rng.choice(string.digits) for _ in number)
    return rng.choice("123456789") + made[1:] if number[:1] not in ("", "0") and not leading else made


def _fill(form: str, number: str) -> str:
    """`form` with its last digits replaced by those of `number`; digits before them and separators stay."""
    return _lay(form, digits(form)[: -len(number)] + number, digits(form))


def _lay(form: str, content: str, slots: str = "") -> str:
    """`form` with each letter or digit (each digit, if its digits are given as `slots`) replaced by the next of
    `content`."""
    source = iter(content)
    return "".join(next(source) if (c in string.digits if slots else c.isalnum()) else c for c in form)


def _without_country(number: str) -> str:
    """The digits of an international number without 00 and country code, as far as the code is known."""
    number = number.removeprefix("00")
    for length in (1, 2, 3):
        if int(number[:length]) in COUNTRY_CODE_TO_REGION_CODE:
            return number[length:]
    return number
