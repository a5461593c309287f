"""Compiled kernels of the renderer: normals, a z-buffer with holes in hair and lashes, a shadow map, shading.

Plain single-threaded loops without `fastmath`: sums keep their order.
"""

import math

import numpy as np
from numba import njit


SKIN, MOUTH, EYE, TEETH, TONGUE, LASHES, HAIR, CLOTH, GLOSS = range(9)
"""Materials; the first six are the parts of the bank."""
_EMPTY = -1e9


@njit(cache=True)
def vertex_normals(points, triangles, normals):
    normals[:] = 0
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in (a, b, c):
            normals[k, 0] += nx
            normals[k, 1] += ny
            normals[k, 2] += nz
    for i in range(normals.shape[0]):
        length = math.sqrt(normals[i, 0] ** 2 + normals[i, 1] ** 2 + normals[i, 2] ** 2) + np.float32(1e-12)
        normals[i, 0] /= length
        normals[i, 1] /= length
        normals[i, 2] /= length


@njit(cache=True)
def moved_points(rest, offsets, weights, out):
    """`out` = `rest` + the sum of `weights` times `offsets` (actions, vertices, 3)."""
    out[:] = rest
    for k in range(weights.shape[0]):
        w = weights[k]
        for i in range(rest.shape[0]):
            out[i, 0] += w * offsets[k, i, 0]
            out[i, 1] += w * offsets[k, i, 1]
            out[i, 2] += w * offsets[k, i, 2]


@njit(cache=True)
def add_folds(rest, folds, chosen, weights, out):
    """`out` = `rest` + the sum of `weights` times the chosen `folds` (maps, height, width)."""
    out[:] = rest
    for k in range(chosen.shape[0]):
        fold, w = folds[chosen[k]], weights[k]
        for y in range(out.shape[0]):
            for x in range(out.shape[1]):
                out[y, x] += w * fold[y, x]


@njit(cache=True)
def _is_hole(material, a0, a1, a2, strands, ends):
    """Whether hair or lashes let one through. ends: heights where hair ends, and how fast it grows thick above."""
    if material == HAIR:
        rows, columns = strands.shape
        u = a0 - math.floor(a0)
        column = min(int(u * columns), columns - 1)
        row = int((a1 + np.float32(2.0)) * np.float32(0.25) * rows) % rows
        density = strands[row, column]
        edge = ends[0, column] + np.float32(0.10) * (density - np.float32(0.5)) * (1 + a2)
        if a1 < edge:
            return True
        sparse = 1 - min((a1 - edge) * ends[1, column], np.float32(1.0))
        return density < a2 * np.float32(0.55) + np.float32(0.75) * sparse
    if material == LASHES:
        stripe = a0 * np.float32(42.0)
        stripe -= math.floor(stripe)
        return a1 > a2 * (np.float32(0.35) + np.float32(0.65) * abs(2 * stripe - 1))
    return False


@njit(cache=True)
def rasterize(xy, depth, triangles, materials, attributes, strands, ends, culls, zbuffer, faces, weights):
    """Nearest triangle of each pixel, and its first two barycentric weights. depth: larger is nearer.

    culls: whether triangles that turn their back are left out (the shadow map keeps them all).
    """
    height, width = zbuffer.shape
    zbuffer[:] = _EMPTY
    faces[:] = -1
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ax, ay, bx, by, cx, cy = xy[a, 0], xy[a, 1], xy[b, 0], xy[b, 1], xy[c, 0], xy[c, 1]
        area = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy)
        material = materials[f]
        has_holes = material == HAIR or material == LASHES
        # y grows downwards: a triangle that faces the camera has a negative area.
        if abs(area) < np.float32(1e-9) or (culls and area > 0 and not has_holes and material < CLOTH):
            continue
        x0, x1 = max(0, math.ceil(min(ax, bx, cx))), min(width - 1, math.floor(max(ax, bx, cx)))
        y0, y1 = max(0, math.ceil(min(ay, by, cy))), min(height - 1, math.floor(max(ay, by, cy)))
        if x0 > x1 or y0 > y1:
            continue
        inverse = np.float32(1.0) / area
        step0, step1 = (by - cy) * inverse, (cy - ay) * inverse
        za, zb, zc = depth[a], depth[b], depth[c]
        for y in range(y0, y1 + 1):
            w0 = ((by - cy) * (x0 - cx) + (cx - bx) * (y - cy)) * inverse
            w1 = ((cy - ay) * (x0 - cx) + (ax - cx) * (y - cy)) * inverse
            for x in range(x0, x1 + 1):
                w2 = 1 - w0 - w1
                if w0 >= np.float32(-1e-5) and w1 >= np.float32(-1e-5) and w2 >= np.float32(-1e-5):
                    z = w0 * za + w1 * zb + w2 * zc
                    if z > zbuffer[y, x]:
                        hole = False
                        if has_holes:
                            hole = _is_hole(
                                material,
                                w0 * attributes[a, 0] + w1 * attributes[b, 0] + w2 * attributes[c, 0],
                                w0 * attributes[a, 1] + w1 * attributes[b, 1] + w2 * attributes[c, 1],
                                w0 * attributes[a, 2] + w1 * attributes[b, 2] + w2 * attributes[c, 2],
                                strands,
                                ends,
                            )
                        if not hole:
                            zbuffer[y, x] = z
                            faces[y, x] = f
                            weights[y, x, 0] = w0
                            weights[y, x, 1] = w1
                w0 += step0
                w1 += step1


@njit(cache=True)
def _power(base, exponent):
    """base ** (2 ** exponent)"""
    for _ in range(exponent):
        base *= base
    return base


@njit(cache=True)
def _between(value, low, high):
    return min(max(value, np.float32(low)), np.float32(high))


@njit(cache=True)
def _skin(texture, relief, a0, a1, nx, ny, nz, head, bump):
    """Colour, gloss, and the normal that pores and folds turn."""
    rows, columns = relief.shape
    u, v = _between(a0 * (columns - 1), 0, columns - 2.001), _between(a1 * (rows - 1), 0, rows - 2.001)
    iu, iv = int(u), int(v)
    fu, fv = u - iu, v - iv
    k00, k01, k10, k11 = (1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv
    t00, t01, t10, t11 = texture[iv, iu], texture[iv, iu + 1], texture[iv + 1, iu], texture[iv + 1, iu + 1]
    red = t00[0] * k00 + t01[0] * k01 + t10[0] * k10 + t11[0] * k11
    green = t00[1] * k00 + t01[1] * k01 + t10[1] * k10 + t11[1] * k11
    blue = t00[2] * k00 + t01[2] * k01 + t10[2] * k10 + t11[2] * k11
    h00, h01, h10, h11 = relief[iv, iu], relief[iv, iu + 1], relief[iv + 1, iu], relief[iv + 1, iu + 1]
    across = ((h01 - h00) * (1 - fv) + (h11 - h10) * fv) * bump
    down = ((h10 - h00) * (1 - fu) + (h11 - h01) * fu) * bump
    # Tangents: the head's up axis, and what is across it on the surface.
    ux, uy, uz = head[0, 1], head[1, 1], head[2, 1]
    cx, cy, cz = uy * nz - uz * ny, uz * nx - ux * nz, ux * ny - uy * nx
    nx, ny, nz = nx - across * cx + down * ux, ny - across * cy + down * uy, nz - across * cz + down * uz
    hollow = _between(h00 * k00 + h01 * k01 + h10 * k10 + h11 * k11, -1.2, 0.5)
    tint = 1 + np.float32(0.26) * hollow
    return red * (1 + np.float32(0.18) * hollow), green * tint, blue * tint, t00[3], nx, ny, nz


@njit(cache=True)
def _eye(dx, dy, dz, gaze, red, green, blue, pupil, sclera):
    """Colour of an eyeball in the direction (dx, dy, dz) from its centre."""
    length = math.sqrt(dx * dx + dy * dy + dz * dz) + np.float32(1e-9)
    angle = math.acos(_between((dx * gaze[0] + dy * gaze[1] + dz * gaze[2]) / length, -1, 1))
    if angle < pupil:
        return np.float32(0.008), np.float32(0.008), np.float32(0.008)
    if angle < np.float32(0.44):
        side, up = dx / length - gaze[0], dy / length - gaze[1]
        bright = np.float32(1.05) + np.float32(0.18) * math.sin(np.float32(21) * math.atan2(up, side))
        bright -= np.float32(1.2) * up
        bright *= 1 - np.float32(0.8) * _between((angle - np.float32(0.37)) * 14, 0, 1)
        return red * bright, green * bright, blue * bright
    edge = min((angle - np.float32(0.44)) * 16, np.float32(1.0))
    corner = _between((angle - np.float32(0.75)) * np.float32(1.4), 0, 1)
    red = sclera * (np.float32(0.35) + np.float32(0.65) * edge) * (1 - np.float32(0.22) * corner)
    return (
        red,
        red * (np.float32(0.95) - np.float32(0.22) * corner),
        red * (np.float32(0.91) - np.float32(0.24) * corner),
    )


@njit(cache=True)
def _inside_mouth(material, a0, a2, depth, tooth_shade, red, green, blue):
    """Colour of mouth, tongue and teeth, darker the deeper they lie, and how dark."""
    if material == TEETH:
        dim = _between(1 + (a2 + np.float32(0.10)) * np.float32(1.1), 0.4, 1) * tooth_shade
        dim *= 1 - np.float32(0.45) * _power(abs(math.sin(a0 * np.float32(41.0))), 4)
        return red * dim, green * dim, blue * dim, np.float32(1.0)
    if material == TONGUE:
        dim = _between(1 + (a2 + np.float32(0.05)) * depth * np.float32(0.8), 0.10, 1)
        return np.float32(0.42) * dim, np.float32(0.13) * dim, np.float32(0.12) * dim, dim
    dim = _between(1 + (a2 + np.float32(0.02)) * depth, 0.05, 1)
    return np.float32(0.30) * dim, np.float32(0.07) * dim, np.float32(0.065) * dim, dim


@njit(cache=True)
def _lit(px, py, pz, axes, shadow_map, shadow):
    """The share of the first light that reaches a point."""
    side, lit = shadow_map.shape[0], np.float32(0.0)
    u = (px * axes[0, 0] + py * axes[0, 1] + pz * axes[0, 2]) * shadow[0] + shadow[1] + np.float32(0.5)
    v = (px * axes[1, 0] + py * axes[1, 1] + pz * axes[1, 2]) * shadow[0] + shadow[1] + np.float32(0.5)
    depth = px * axes[2, 0] + py * axes[2, 1] + pz * axes[2, 2] + shadow[2]
    for row in range(-1, 2):
        for column in range(-1, 2):
            x, y = int(u + column * shadow[3]), int(v + row * shadow[3])
            if x < 0 or y < 0 or x >= side or y >= side or shadow_map[y, x] < depth:
                lit += np.float32(1.0 / 9.0)
    return lit


@njit(cache=True)
def _highlight(material, nx, ny, nz, head, lx, ly, lz, sharp):
    """How much of a light a surface mirrors into the camera; hair along its strands, skin more at grazing angles."""
    hx, hy, hz = lx, ly, lz + 1
    length = math.sqrt(hx * hx + hy * hy + hz * hz) + np.float32(1e-6)
    if material == HAIR:
        ux, uy, uz = head[0, 1], head[1, 1], head[2, 1]
        along = nx * ux + ny * uy + nz * uz
        tx, ty, tz = ux - along * nx, uy - along * ny, uz - along * nz
        cosine = (tx * hx + ty * hy + tz * hz) / (length * math.sqrt(tx * tx + ty * ty + tz * tz) + np.float32(1e-6))
        return _power(max(1 - cosine * cosine, np.float32(0.0)), 4) * (nx * lx + ny * ly + nz * lz)
    cosine = max((nx * hx + ny * hy + nz * hz) / length, np.float32(0.0))
    if material != SKIN:
        return _power(cosine, sharp + 1)
    grazing = _power(1 - max(nz, np.float32(0.0)), 2)
    return (_power(cosine, 4) + np.float32(0.6) * _power(cosine, 5)) * (1 + 2 * grazing)


@njit(cache=True)
def _surface(material, at, normal, point, colour, is_open, skin, strands, head, eyes, gaze, face):
    """Colour, gloss and its sharpness, wrap of the light, normal, and openness to light of a point.

    at: attributes. Light wraps around skin, red further than blue, as it spreads within.
    """
    mouth_depth, shine, bump, pupil, sclera, collar, neckline, tooth_shade = face
    (a0, a1, a2), (red, green, blue) = at, colour
    wrap = (np.float32(0.12), np.float32(0.12), np.float32(0.12))
    gloss, sharp = np.float32(0.05), 3
    if material == SKIN:
        gloss = np.float32(0.02)
        if a1 <= collar + neckline * abs(a0 - np.float32(0.5)):
            nx, ny, nz = normal
            red, green, blue, gloss, nx, ny, nz = _skin(skin[0], skin[1], a0, a1, nx, ny, nz, head, bump)
            normal, gloss = (nx, ny, nz), gloss * shine
            wrap = (np.float32(0.32), np.float32(0.16), np.float32(0.10))
    elif material == EYE:
        e = 0 if a0 > 0 else 1
        dx, dy, dz = point[0] - eyes[e, 0], point[1] - eyes[e, 1], point[2] - eyes[e, 2]
        red, green, blue = _eye(dx, dy, dz, gaze[e], red, green, blue, pupil, sclera)
        gloss, sharp = np.float32(1.6), 6
    elif material == MOUTH or material == TEETH or material == TONGUE:
        red, green, blue, dim = _inside_mouth(material, a0, a2, mouth_depth, tooth_shade, red, green, blue)
        is_open = np.float32(0.70) + np.float32(0.30) * is_open if material == TEETH else is_open * dim
        gloss, sharp = np.float32(0.3) * dim, 4
    elif material == LASHES:
        gloss = np.float32(0.0)
    elif material == HAIR:
        column = min(int((a0 - math.floor(a0)) * strands.shape[1]), strands.shape[1] - 1)
        density = strands[int((a1 + np.float32(2.0)) * np.float32(0.25) * strands.shape[0]) % strands.shape[0], column]
        streak = (np.float32(0.45) + np.float32(0.9) * density) * (np.float32(0.6) + np.float32(0.45) * a2)
        red, green, blue, gloss = red * streak, green * streak, blue * streak, np.float32(0.35) * density
        wrap = (np.float32(0.3), np.float32(0.3), np.float32(0.3))
    elif material == GLOSS:
        gloss, sharp = np.float32(1.2), 5
    length = math.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + np.float32(1e-9)
    if normal[2] < 0 and material >= LASHES:
        length = -length
    normal = (normal[0] / length, normal[1] / length, normal[2] / length)
    return (red, green, blue), gloss, sharp, wrap, normal, is_open


@njit(cache=True)
def _light_at(material, normal, point, wrap, gloss, sharp, is_open, head, light):
    """RGB that falls on a point from all sides, and that it mirrors."""
    lights, colours, ambient, axes, shadow_map, shadow = light
    nx, ny, nz = normal
    lr = (ambient[0, 0] + ambient[1, 0] * nx + ambient[2, 0] * ny + ambient[3, 0] * nz) * is_open
    lg = (ambient[0, 1] + ambient[1, 1] * nx + ambient[2, 1] * ny + ambient[3, 1] * nz) * is_open
    lb = (ambient[0, 2] + ambient[1, 2] * nx + ambient[2, 2] * ny + ambient[3, 2] * nz) * is_open
    sr, sg, sb = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for i in range(lights.shape[0]):
        lx, ly, lz = lights[i, 0], lights[i, 1], lights[i, 2]
        toward, lit = nx * lx + ny * ly + nz * lz, np.float32(1.0)
        if i == 0 and (toward > -wrap[0] or material == TEETH):
            lit = _lit(point[0], point[1], point[2], axes, shadow_map, shadow)
            if material == TEETH:
                lit = np.float32(0.65) + np.float32(0.35) * lit
        share = lit * (np.float32(0.5) + np.float32(0.5) * is_open)
        lr += colours[i, 0] * share * max((toward + wrap[0]) / (1 + wrap[0]), np.float32(0.0))
        lg += colours[i, 1] * share * max((toward + wrap[1]) / (1 + wrap[1]), np.float32(0.0))
        lb += colours[i, 2] * share * max((toward + wrap[2]) / (1 + wrap[2]), np.float32(0.0))
        if toward > 0 and gloss > 0:
            strength = np.float32(0.22) * gloss * lit * _highlight(material, nx, ny, nz, head, lx, ly, lz, sharp)
            sr, sg, sb = sr + strength * colours[i, 0], sg + strength * colours[i, 1], sb + strength * colours[i, 2]
    return lr, lg, lb, sr, sg, sb


@njit(cache=True)
def _mean(values, corners, weights):
    """The first three values at a point between three corners."""
    (a, b, c), (w0, w1, w2) = corners, weights
    return (
        w0 * values[a, 0] + w1 * values[b, 0] + w2 * values[c, 0],
        w0 * values[a, 1] + w1 * values[b, 1] + w2 * values[c, 1],
        w0 * values[a, 2] + w1 * values[b, 2] + w2 * values[c, 2],
    )


@njit(cache=True)
def shade(mesh, buffers, skin, strands, head, light, eyes, gaze, face, out):
    """Linear RGB of the pixels that show something.

    mesh: triangles, materials, points, normals, attributes, colours; the latter of what has no texture.
    buffers: faces, weights, occlusion. skin: texture, relief. light: directions to lights, colours, ambient (4, 3) as
    constant and slopes along x, y, z; axes, map and numbers (scale, centre, bias, blur) of the first light's shadow.
    face: numbers of a person, in the order of FACE_NUMBERS.
    """
    triangles, materials, points, normals, attributes, colours = mesh
    faces, weights, occlusion = buffers
    for y in range(faces.shape[0]):
        for x in range(faces.shape[1]):
            f = faces[y, x]
            if f < 0:
                continue
            corners = (triangles[f, 0], triangles[f, 1], triangles[f, 2])
            share = (weights[y, x, 0], weights[y, x, 1], 1 - weights[y, x, 0] - weights[y, x, 1])
            material, point = materials[f], _mean(points, corners, share)
            at, normal = _mean(attributes, corners, share), _mean(normals, corners, share)
            own, is_open = (colours[f, 0], colours[f, 1], colours[f, 2]), occlusion[y, x]
            colour, gloss, sharp, wrap, normal, is_open = _surface(
                material, at, normal, point, own, is_open, skin, strands, head, eyes, gaze, face
            )
            lr, lg, lb, sr, sg, sb = _light_at(material, normal, point, wrap, gloss, sharp, is_open, head, light)
            out[y, x, 0], out[y, x, 1], out[y, x, 2] = colour[0] * lr + sr, colour[1] * lg + sg, colour[2] * lb + sb


FACE_NUMBERS = ("mouth_depth", "shine", "bump", "pupil", "sclera", "collar", "neckline", "tooth_shade")

__all__ = [
    *("CLOTH", "EYE", "FACE_NUMBERS", "GLOSS", "HAIR", "LASHES", "MOUTH", "SKIN", "TEETH", "TONGUE"),
    *("add_folds", "moved_points", "rasterize", "shade", "vertex_normals"),
]
